"""Gather what an ablation leaves behind: a report to read, tables for machines and pictures."""

from yolor_ray.report.markdown import code, escape, table
from yolor_ray.study.ablation.csv_json import report_csv, report_json, trials_csv
from yolor_ray.study.ablation.forest_plot import differences_png
from yolor_ray.study.ablation.priors_plot import priors_png
from yolor_ray.study.ablation.summary import Summary, best, summarise
from yolor_ray.study.ablation.tables import accuracy, costs, paper
from yolor_ray.study.ablation.verdict import verdict
from yolor_ray.study.results import Study
from yolor_ray.study.wording import title
from yolor_ray.study.workspace import REPORT_FILE

__all__ = ["REPORT_FILE", "ablation_files", "best"]

READING = """## How to read this

A variant and the baseline are compared seed by seed: with one seed, networks start from the same explicit weights and see the same \
images in the same order, so that what the seed does to both is not in their difference. The interval covers chance by seeds and by the \
choice of validation images (resampled with replacement), not other data sets, networks or schedules. Every trial with the URL of its run \
folder, where its weights, curves and settings are, is in trials.csv; report.csv and report.json hold what is written here, unrounded."""
CAPTIONS = {
    "differences.png": "Differences in AP to the baseline. A dot is the mean over seeds, its line the 95 % interval, blue where that holds "
    "no 0 and dotted where one seed leaves it to the images alone; small dots are single seeds, "
    "hollow diamonds the paper's own differences (one training each).",
    "priors.png": "What implicit knowledge has learned, by prediction level. Outputs: the prior on each output, averaged over anchors and "
    "seeds (faint dots are single seeds); above the dashed line, where it changes nothing, objectness or a class is made likelier by an "
    "addition. Features: the priors of all channels in ascending order (faint lines are single seeds), so that a flat curve on the dashed "
    "line has learned nothing and steep ends are channels that matter.",
}


def ablation_files(study: Study) -> dict[str, bytes]:
    """Return report.md, report.csv, report.json and trials.csv, and the pictures that there is something to draw for.

    Accuracies are 0 to 1 for machines and points for people; a number that is unknown is null or empty.
    """
    summary = summarise(study)
    drawn = {"differences.png": differences_png(summary), "priors.png": priors_png(study)}
    pictures = {name: png for name, png in drawn.items() if png is not None}
    return {
        REPORT_FILE: _report(summary, list(pictures)).encode(),
        "report.csv": report_csv(summary).encode(),
        "report.json": report_json(summary, verdict(summary)).encode(),
        "trials.csv": trials_csv(study).encode(),
        **pictures,
    }


def _report(summary: Summary, pictures: list[str]) -> str:
    study = summary.study
    sections = [
        "# Ablation of implicit knowledge",
        *verdict(summary),
        "## What was done\n\n" + table(("what", "value"), [[escape(key), escape(value)] for key, value in study.summary.items()], words=2),
        *(accuracy(summary, setting) for setting in study.settings if summary.measured),
        costs(summary),
        paper(summary),
        _pictures(summary, pictures),
        _failures(study),
        READING,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _pictures(summary: Summary, names: list[str]) -> str:
    several = len(summary.study.settings) > 1
    only = f" Drawn with {code(summary.study.settings[0])}." if several else ""
    shown = [f"![{name}]({name})\n\n{CAPTIONS[name]}{only if name == 'priors.png' else ''}" for name in names]
    return "\n\n".join(("## Pictures", *shown)) if shown else ""


def _failures(study: Study) -> str:
    rows = [[title(f.variant), code(f.setting) if f.setting else "", str(f.seed), escape(f.reason), code(f.run)] for f in study.failures]
    return f"## Failures\n\n{table(('variant', 'setting', 'seed', 'reason', 'run'), rows, words=5)}" if rows else ""

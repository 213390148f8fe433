"""Files of an ablation: the report as Markdown, CSV and JSON, the list of trials, and the pictures."""

from yolor_ray.report.markdown import code, escape, table
from yolor_ray.study.ablation.csv_json import report_csv, report_json, trials_csv
from yolor_ray.study.ablation.forest_plot import differences_png
from yolor_ray.study.ablation.priors_plot import priors_png
from yolor_ray.study.ablation.summary import Summary, summarise
from yolor_ray.study.ablation.tables import accuracy_section, costs_section, paper_section
from yolor_ray.study.ablation.verdict import verdict
from yolor_ray.study.results import Study
from yolor_ray.study.wording import setup_section, variant_title
from yolor_ray.study.workspace import REPORT_FILE

READING = """## How to read this

A variant and the baseline are compared seed by seed. With one seed, both networks start from the same explicit weights and see the same \
images in the same order, so that the effect of the seed on both cancels in their difference. The interval covers noise from seeds and \
from the choice of validation images (resampled with replacement), not other datasets, networks or schedules. trials.csv lists every trial \
with the URL of its run folder, which has the weights, curves and settings. report.csv and report.json have the numbers of this report, \
unrounded."""
CAPTIONS = {
    "differences.png": "Differences in AP to the baseline. A large dot is the mean over seeds, and its line is the 95 % interval: blue "
    "where the interval excludes 0, dotted where one seed leaves the images as the only measured noise. Small dots are single seeds; "
    "hollow diamonds are the paper's differences (one training run each).",
    "priors.png": "Learned implicit knowledge by prediction level. Outputs: the prior on each output, averaged over anchors and seeds "
    "(faint dots are single seeds). On the dashed line, a prior changes nothing; an added prior above the line makes objectness or a "
    "class more likely. Features: the priors of all channels in ascending order (faint lines are single seeds). A flat curve on the "
    "dashed line has learned nothing; steep ends are channels that matter.",
}


def ablation_files(study: Study) -> dict[str, bytes]:
    """Return report.md, report.csv, report.json, trials.csv, and the pictures that the results allow.

    Accuracies are 0 to 1 in CSV and JSON, and points in Markdown; an unknown number is null or empty.
    """
    summary = summarise(study)
    plots = {"differences.png": differences_png(summary), "priors.png": priors_png(study)}
    pictures = {name: png for name, png in plots.items() if png is not None}
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
        setup_section(study.summary),
        *(accuracy_section(summary, setting) for setting in study.settings if summary.measured),
        costs_section(summary),
        paper_section(summary),
        _pictures(summary, pictures),
        _failures(study),
        READING,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _pictures(summary: Summary, names: list[str]) -> str:
    several = len(summary.study.settings) > 1
    setting = f" Drawn with {code(summary.study.settings[0])}." if several else ""
    figures = [f"![{name}]({name})\n\n{CAPTIONS[name]}{setting if name == 'priors.png' else ''}" for name in names]
    return "\n\n".join(("## Pictures", *figures)) if figures else ""


def _failures(study: Study) -> str:
    rows = [
        [variant_title(f.variant), code(f.setting) if f.setting else "", str(f.seed), escape(f.reason), code(f.run)] for f in study.failures
    ]
    return f"## Failures\n\n{table(('variant', 'setting', 'seed', 'reason', 'run'), rows, text_columns=5)}" if rows else ""

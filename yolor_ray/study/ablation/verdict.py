"""Say in plain English which variants make a difference in AP that is larger than noise, and what chance alone would make."""

from yolor_ray.report.markdown import code, joined, points
from yolor_ray.study.ablation.summary import Row, Summary, difference_decimals
from yolor_ray.study.estimates import half_width
from yolor_ray.study.wording import by_chance, difference_text, title


def verdict(summary: Summary) -> list[str]:
    """Return paragraphs of Markdown: one for each setting, then what holds for all of them."""
    study = summary.study
    several = len(study.settings) > 1
    found = {setting: _of_setting(summary, setting) for setting in study.settings}
    said = [f"With {code(setting)}: {text}" if several else text[0].upper() + text[1:] for setting, text in found.items()]
    failed, started = len(study.failures), len(study.failures) + len(study.trials)
    failures = f"{failed} of {started} trainings failed: see Failures below." if failed else ""
    return [part for part in (*said, _chance(summary), failures) if part]


def _of_setting(summary: Summary, setting: str) -> str:
    rows = summary.rows_of(setting)
    compared = [row for row in rows if row.paired]
    judged = [row for row in compared if row.judged]
    if "AP" not in summary.measured and summary.study.trials:
        return "AP could not be measured: the validation set holds no object that counts."
    if not compared:
        return "nothing can be compared: there is no variant of which a training and the baseline's of the same seed came to their ends."
    places = difference_decimals(summary)
    if not judged:
        return _unjudged(compared, places)
    left = [title(row.variant) for row in rows if row not in judged]
    missing = f" {joined(left)} cannot be judged: fewer than two seeds were trained and measured along with the baseline." if left else ""
    return _judgement(judged, places) + missing


def _unjudged(compared: list[Row], places: int) -> str:
    largest = max(compared, key=lambda row: abs(row.differences["AP"].mean))
    found = points(largest.differences["AP"].mean, places, "+")
    return (
        "no variant has more than one seed in common with the baseline, so the noise between seeds was not measured, and no difference "
        f"can be called larger than noise. The largest in AP is {title(largest.variant)}'s, {found} points; two or more seeds would tell "
        "whether it means anything."
    )


def _judgement(judged: list[Row], places: int) -> str:
    beyond = [row for row in judged if row.beyond_noise("AP")]
    if not beyond:
        held = f"all {len(judged)} intervals hold" if len(judged) > 1 else "the only interval holds"
        return f"no difference in AP to the baseline is larger than noise: {held} 0."
    raised = [row for row in beyond if row.differences["AP"].mean > 0]
    lowered = [row for row in beyond if row not in raised]
    parts = [_moved(verb, rows, places) for verb, rows in (("raise", raised), ("lower", lowered)) if rows]
    others = len(judged) - len(beyond)
    rest = {0: "", 1: " The other difference is not."}.get(others, f" The other {others} of {len(judged)} differences are not.")
    return f"{'; '.join(parts)}.{rest}"


def _moved(verb: str, rows: list[Row], places: int) -> str:
    names = [f"**{title(row.variant)}** ({difference_text(row.differences['AP'], places)})" for row in rows]
    return f"{joined(names)} {verb}{'s' if len(names) == 1 else ''} AP by more than noise"


def _chance(summary: Summary) -> str:
    """Say what could have been seen, and how often chance alone looks like a finding."""
    judged = [row.differences["AP"] for row in summary.rows if row.judged]
    if not judged:
        return ""
    width = points(half_width(judged), difference_decimals(summary))
    seen = f"This study could see differences of about {width} points of AP and more (the median half-width of its 95 % intervals)."
    return f"{seen} {by_chance(len(judged))}"

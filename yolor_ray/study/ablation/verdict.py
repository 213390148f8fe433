"""Verdict of an ablation in plain English: variants whose difference in AP is larger than noise, and the differences expected by chance."""

from yolor_ray.report.markdown import code, join_with_and, percent_points
from yolor_ray.study.ablation.summary import Summary, SummaryRow, difference_decimals
from yolor_ray.study.estimates import median_half_width
from yolor_ray.study.wording import describe_chance, format_difference, variant_title


def verdict(summary: Summary) -> list[str]:
    """Return paragraphs of Markdown: one for each setting, then the paragraphs about the whole study."""
    study = summary.study
    several = len(study.settings) > 1
    texts = {setting: _setting_verdict(summary, setting) for setting in study.settings}
    paragraphs = [f"With {code(setting)}: {text}" if several else text[0].upper() + text[1:] for setting, text in texts.items()]
    failed, started = len(study.failures), len(study.failures) + len(study.trials)
    failures = f"{failed} of {started} trials failed: see Failures below." if failed else ""
    return [paragraph for paragraph in (*paragraphs, _chance(summary), failures) if paragraph]


def _setting_verdict(summary: Summary, setting: str) -> str:
    rows = summary.variant_rows(setting)
    compared = [row for row in rows if row.paired]
    testable = [row for row in compared if row.testable]
    if "AP" not in summary.measured and summary.study.trials:
        return "AP could not be measured: the validation set has no object that counts."
    if not compared:
        return "nothing can be compared: no variant has a finished trial with the seed of a finished baseline trial."
    decimals = difference_decimals(summary)
    if not testable:
        return _single_seed_verdict(compared, decimals)
    untestable = [variant_title(row.variant) for row in rows if row not in testable]
    missing = f" {join_with_and(untestable)} cannot be judged: fewer than two seeds were trained and measured in common with the baseline."
    return _test_results(testable, decimals) + (missing if untestable else "")


def _single_seed_verdict(compared: list[SummaryRow], decimals: int) -> str:
    largest = max(compared, key=lambda row: abs(row.differences["AP"].mean))
    difference = percent_points(largest.differences["AP"].mean, decimals, "+")
    return (
        "no variant has more than one seed in common with the baseline, so the noise between seeds was not measured, and no difference "
        f"can be called larger than noise. The largest difference in AP is that of {variant_title(largest.variant)}, {difference} points. "
        "Two or more seeds would show whether the difference is larger than noise."
    )


def _test_results(testable: list[SummaryRow], decimals: int) -> str:
    beyond = [row for row in testable if row.beyond_noise("AP")]
    if not beyond:
        intervals = f"all {len(testable)} intervals contain" if len(testable) > 1 else "the only interval contains"
        return f"no difference in AP to the baseline is larger than noise: {intervals} 0."
    raised = [row for row in beyond if row.differences["AP"].mean > 0]
    lowered = [row for row in beyond if row not in raised]
    clauses = [_change(verb, rows, decimals) for verb, rows in (("raise", raised), ("lower", lowered)) if rows]
    remaining = len(testable) - len(beyond)
    rest = f" The other {remaining} of {len(testable)} differences are not." if remaining > 1 else " The other difference is not."
    return f"{'; '.join(clauses)}.{rest if remaining else ''}"


def _change(verb: str, rows: list[SummaryRow], decimals: int) -> str:
    names = [f"**{variant_title(row.variant)}** ({format_difference(row.differences['AP'], decimals)})" for row in rows]
    return f"{join_with_and(names)} {verb}{'s' if len(names) == 1 else ''} AP by more than noise"


def _chance(summary: Summary) -> str:
    """Return the smallest difference that the study can detect, and the number of differences expected by chance."""
    testable = [row.differences["AP"] for row in summary.rows if row.testable]
    if not testable:
        return ""
    width = percent_points(median_half_width(testable), difference_decimals(summary))
    detectable = f"This study can detect differences of about {width} points of AP or more (the median half-width of its 95 % intervals)."
    return f"{detectable} {describe_chance(len(testable))}"

"""Markdown tables of an ablation's report: accuracies, costs, and the paper's numbers beside the study's."""

from collections.abc import Callable

from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.markdown import UNKNOWN, code, escape, table
from yolor_ray.study.ablation.summary import Summary, SummaryRow, difference_decimals
from yolor_ray.study.paper_results import BASELINE_ROW, OVERHEADS, ROWS, SOURCE, paper_difference
from yolor_ray.study.results import METRICS, Cost
from yolor_ray.study.wording import (
    describe_implicit,
    format_difference,
    format_mean,
    joint_tasks_table,
    paper_cells,
    points_decimals,
    variant_title,
)


def accuracy_section(summary: Summary, setting: str) -> str:
    """Return the differences to the baseline and the means over seeds under one setting, as Markdown."""
    heading = f" with {code(setting)}" if len(summary.study.settings) > 1 else ""
    absent = [metric.upper() for metric in METRICS if metric not in summary.measured]
    left_out = f"\n\nLeft out: {', '.join(absent)}. The validation set has no object to measure them on." if absent else ""
    has_single_seed = any(len(row.paired) == 1 for row in summary.variant_rows(setting))
    caution = " With one seed, the interval covers the validation images alone and is never bold." if has_single_seed else ""
    return (
        f"## Accuracy{heading}\n\n"
        "Differences to the baseline with the same seeds, in points with 95 % intervals. **Bold** differences are larger than noise; "
        f"one in twenty appears so by chance alone.{caution}\n\n{_differences(summary, setting)}\n\n"
        f"Means over seeds, in points ± half of the 95 % interval.\n\n{_means(summary, setting)}{left_out}"
    )


def _differences(summary: Summary, setting: str) -> str:
    decimals = difference_decimals(summary)
    heads = ("variant", "configuration", "seeds", *(f"Δ{name.upper()}" for name in summary.measured))
    rows = [_difference_cells(row, summary.measured, decimals) for row in summary.variant_rows(setting)]
    return table(heads, rows, text_columns=2)


def _difference_cells(row: SummaryRow, metrics: tuple[str, ...], decimals: int) -> list[str]:
    cells = [format_difference(row.differences[name], decimals) if row.paired else UNKNOWN for name in metrics]
    marked = [f"**{cell}**" if row.paired and row.beyond_noise(name) else cell for name, cell in zip(metrics, cells, strict=True)]
    return [variant_title(row.variant), describe_implicit(row.variant), str(len(row.paired)), *marked]


def _means(summary: Summary, setting: str) -> str:
    rows = [row for row in summary.rows if row.setting == setting]
    decimals = points_decimals([row.metrics[name] for row in rows for name in summary.measured])
    cells = [
        [variant_title(row.variant), str(len(row.seeds)), *(format_mean(row.metrics[name], decimals) for name in summary.measured)]
        for row in rows
    ]
    return table(("variant", "seeds", *(name.upper() for name in summary.measured)), cells)


def costs_section(summary: Summary) -> str:
    """Return the additional cost of each variant over the baseline, as trained and fused, as Markdown."""
    study = summary.study
    baseline = study.costs.get(study.variants[0])
    setting = f" with {code(study.settings[0])}" if len(study.settings) > 1 else ""
    heads = ("parameters", "FLOPs", "parameters, fused", "FLOPs, fused", "ms", "ms, fused", "time", "time, fused")
    rows = [[variant_title(name), *_cost_cells(study.costs.get(name), baseline)] for name in study.variants]
    return (
        f"## Costs\n\nCosts for one image{setting}: additional parameters and FLOPs over the baseline, as trained and fused; the latency; "
        "and the latency as a multiple of the fused baseline's. Fusing folds implicit knowledge into the convolutions, so that implicit "
        f"knowledge should cost nothing in inference.{_baseline_cost(baseline)}\n\n{table(('variant', *heads), rows)}"
    )


def _baseline_cost(baseline: Cost | None) -> str:
    if baseline is None:
        return ""
    trained = f"{baseline.parameters:,} parameters and {_format_count(baseline.flops, '')} FLOPs as trained"
    return f" The baseline has {trained}, {baseline.fused_parameters:,} and {_format_count(baseline.fused_flops, '')} fused."


def _cost_cells(cost: Cost | None, baseline: Cost | None) -> list[str]:
    if cost is None:
        return [UNKNOWN] * 8
    counts: dict[str, Callable[[Cost], float]] = {
        "parameters": lambda c: c.parameters,
        "flops": lambda c: c.flops,
        "fused_parameters": lambda c: c.fused_parameters,
        "fused_flops": lambda c: c.fused_flops,
    }
    extra = [_format_count(get(cost) - get(baseline), "+", exact="param" in name) if baseline else UNKNOWN for name, get in counts.items()]
    ratios = [f"{ms / baseline.fused_ms:.2f}×" if baseline else UNKNOWN for ms in (cost.unfused_ms, cost.fused_ms)]
    return [*extra, f"{cost.unfused_ms:.2f}", f"{cost.fused_ms:.2f}", *ratios]


def _format_count(number: float, sign: str, exact: bool = False) -> str:
    """Return a count in full, or in thousands, millions or billions with four digits."""
    if not number:
        return "0"
    unit, letter = next(((u, n) for u, n in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if abs(number) >= u and not exact), (1, ""))
    return f"{number / unit:{sign},.{4 if letter else 12}g}{letter}".replace("-", "−")


def paper_section(summary: Summary) -> str:
    """Return the paper's numbers, with this study's difference in AP for each common variant, as Markdown."""
    study = summary.study
    variants = {VARIANTS[name].paper: name for name in study.variants}
    decimals = difference_decimals(summary)
    several = len(study.settings) > 1
    study_heads = [f"ΔAP, study, {code(setting)}" if several else "ΔAP, study" for setting in study.settings]
    heads = ("paper", "study", "tables", *(name.upper() for name in METRICS), "ΔAP, paper", *study_heads)
    rows = []
    for name, row in ROWS.items():
        matches = [match for match in summary.rows if match.variant == variants.get(name) and name != BASELINE_ROW]
        cells = [format_difference(match.differences["AP"], decimals) if match.paired else UNKNOWN for match in matches]
        difference = UNKNOWN if name == BASELINE_ROW else f"{paper_difference(name):+.1f}".replace("-", "−")
        title = variant_title(variants[name]) if name in variants else UNKNOWN
        rows.append([escape(name), title, *paper_cells(row), difference, *(cells or [UNKNOWN] * len(study_heads))])
    return (
        f"## The paper's numbers\n\nFor orientation, in points ({SOURCE}). The paper trained each row once, so the noise in its "
        "differences of 0.1 to 0.5 points is not known. Its network, data and schedule differ from this study's: compare signs and order, "
        f"not sizes.\n\n{table(heads, rows, text_columns=3)}\n\n{joint_tasks_table()}\n\n{_overheads()}"
    )


def _overheads() -> str:
    rows = [
        [
            name,
            f"{o.parameters:,}",
            f"+{o.implicit_parameters - o.parameters:,}",
            f"{o.mflops:,.1f}",
            f"+{o.implicit_mflops - o.mflops:.1f}",
        ]
        for name, o in OVERHEADS.items()
    ]
    heads = ("network", "parameters", "implicit (+iFA, ×iPR)", "MFLOPs", "implicit")
    return f"Table 7, cost of implicit knowledge as trained:\n\n{table(heads, rows)}"

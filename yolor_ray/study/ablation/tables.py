"""Write the tables of an ablation's report: accuracies, costs, and the paper's numbers beside them."""

from collections.abc import Callable

from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.markdown import UNKNOWN, code, escape, table
from yolor_ray.study.ablation.summary import Row, Summary, difference_decimals
from yolor_ray.study.paper_results import BASELINE_ROW, OVERHEADS, ROWS, SOURCE, paper_difference
from yolor_ray.study.results import METRICS, Cost
from yolor_ray.study.wording import configuration, decimals, difference_text, joint, paper_cells, spread_text, title


def accuracy(summary: Summary, setting: str) -> str:
    """Write the differences to the baseline and the means over seeds under one setting."""
    name = f" with {code(setting)}" if len(summary.study.settings) > 1 else ""
    absent = [metric.upper() for metric in METRICS if metric not in summary.measured]
    left_out = f"\n\nLeft out: {', '.join(absent)}. The validation set has no object that they could be measured on." if absent else ""
    single = any(len(row.paired) == 1 for row in summary.rows_of(setting))
    caution = " The interval of one seed is of the validation images alone, and never bold." if single else ""
    return (
        f"## Accuracy{name}\n\n"
        "Differences to the baseline, trained with the same seeds, in points with 95 % intervals; **bold** where they are larger than "
        f"noise, as one number in twenty looks by chance alone.{caution}\n\n{_differences(summary, setting)}\n\n"
        f"Means over seeds, in points ± half of the 95 % interval.\n\n{_means(summary, setting)}{left_out}"
    )


def _differences(summary: Summary, setting: str) -> str:
    rows = summary.rows_of(setting)
    places = difference_decimals(summary)
    heads = ("variant", "configuration", "seeds", *(f"Δ{name.upper()}" for name in summary.measured))
    return table(heads, [_difference_cells(row, summary.measured, places) for row in rows], words=2)


def _difference_cells(row: Row, measured: tuple[str, ...], places: int) -> list[str]:
    cells = [difference_text(row.differences[name], places) if row.paired else UNKNOWN for name in measured]
    marked = [f"**{cell}**" if row.paired and row.beyond_noise(name) else cell for name, cell in zip(measured, cells, strict=True)]
    return [title(row.variant), configuration(row.variant), str(len(row.paired)), *marked]


def _means(summary: Summary, setting: str) -> str:
    rows = [row for row in summary.rows if row.setting == setting]
    places = decimals([row.metrics[name] for row in rows for name in summary.measured])
    cells = [[title(r.variant), str(len(r.seeds)), *(spread_text(r.metrics[name], places) for name in summary.measured)] for r in rows]
    return table(("variant", "seeds", *(name.upper() for name in summary.measured)), cells)


def costs(summary: Summary) -> str:
    """Write what each variant costs more than the baseline, as trained and folded."""
    study = summary.study
    base = study.costs.get(study.variants[0])
    where = f", of {code(study.settings[0])}" if len(study.settings) > 1 else ""
    heads = ("parameters", "FLOPs", "parameters, fused", "FLOPs, fused", "ms", "ms, fused", "time", "time, fused")
    rows = [[title(name), *_cost_cells(study.costs.get(name), base)] for name in study.variants]
    return (
        f"## Costs\n\nFor one image{where}: what each variant has more than the baseline, as trained and fused (folded for inference, "
        "where implicit knowledge should cost nothing); the latency; and that as a multiple of the fused baseline's."
        f"{_start(base)}\n\n{table(('variant', *heads), rows)}"
    )


def _start(base: Cost | None) -> str:
    if base is None:
        return ""
    trained = f"{base.parameters:,} parameters and {_amount(base.flops, '')} FLOPs as trained"
    return f" The baseline has {trained}, {base.fused_parameters:,} and {_amount(base.fused_flops, '')} fused."


def _cost_cells(cost: Cost | None, base: Cost | None) -> list[str]:
    if cost is None:
        return [UNKNOWN] * 8
    extra: dict[str, Callable[[Cost], float]] = {
        "parameters": lambda c: c.parameters,
        "flops": lambda c: c.flops,
        "fused_parameters": lambda c: c.fused_parameters,
        "fused_flops": lambda c: c.fused_flops,
    }
    more = [_amount(get(cost) - get(base), "+", exact="param" in name) if base else UNKNOWN for name, get in extra.items()]
    times = [f"{ms / base.fused_ms:.2f}×" if base else UNKNOWN for ms in (cost.unfused_ms, cost.fused_ms)]
    return [*more, f"{cost.unfused_ms:.2f}", f"{cost.fused_ms:.2f}", *times]


def _amount(number: float, sign: str, exact: bool = False) -> str:
    """Return a count in full, or in thousands, millions or billions with four digits."""
    if not number:
        return "0"
    unit, letter = next(((u, n) for u, n in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if abs(number) >= u and not exact), (1, ""))
    return f"{number / unit:{sign},.{4 if letter else 12}g}{letter}".replace("-", "−")


def paper(summary: Summary) -> str:
    """Write the paper's own numbers, and this study's difference in AP beside them where it trained the same variant."""
    study = summary.study
    ours = {VARIANTS[name].paper: name for name in study.variants}
    places = difference_decimals(summary)
    several = len(study.settings) > 1
    here = [f"ΔAP here, {code(setting)}" if several else "ΔAP here" for setting in study.settings]
    heads = ("paper", "here", "tables", *(name.upper() for name in METRICS), "ΔAP, paper", *here)
    rows = []
    for name, row in ROWS.items():
        matches = [match for match in summary.rows if match.variant == ours.get(name) and name != BASELINE_ROW]
        cells = [difference_text(match.differences["AP"], places) if match.paired else UNKNOWN for match in matches]
        difference = UNKNOWN if name == BASELINE_ROW else f"{paper_difference(name):+.1f}".replace("-", "−")
        mine = title(ours[name]) if name in ours else UNKNOWN
        rows.append([escape(name), mine, *paper_cells(row), difference, *(cells or [UNKNOWN] * len(here))])
    return (
        f"## The paper's numbers\n\nFor orientation, in points ({SOURCE}). The paper trained each row once: how much of its differences of "
        "0.1 to 0.5 points is noise is not known. Its network, data and schedule are not this study's: compare signs and order, not "
        f"sizes.\n\n{table(heads, rows, words=3)}\n\n{joint()}\n\n{_overheads()}"
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
    return f"Table 7, what implicit knowledge costs as trained:\n\n{table(heads, rows)}"

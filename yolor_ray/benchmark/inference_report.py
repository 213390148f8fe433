"""Say what the rounds of the inference benchmark mean: latencies, ratios, the share of the machine's peak, and the limit.

Rounds hold seconds per call under the names `form_batch`, `part_batch` and, for the peaks, `kind_precision`.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from yolor_ray.inference.timing import Rows, median, speed_ratios, spread

FORMS = ("ancestor", "unfused", "fused", "plain", "served")
PARTS = ("input", "decode", "select")
"""Outside of the convolutions, by torch: bytes to floats; raw outputs to boxes and scores; those to detections."""
RATIOS = (("served", "ancestor"), ("fused", "unfused"), ("fused", "plain"))
"""How many times as fast the first is as the second; folded and plain networks should be equals."""
COMPUTE_BOUND, OUTSIDE_BOUND = 0.7, 0.2
"""Share of the peak, and of the time that the parts take, from which on they are called the limit."""


def report(rows: Rows, batches: Sequence[int], image_flops: float, peak_operations: Mapping[str, float], precision: str) -> dict[str, Any]:
    """Return medians over the rounds, ratios of speeds within each round, spreads, shares and the limit.

    Args:
        rows: seconds per call, round by round.
        batches: images per call; the first gives the main ratio and the limit.
        image_flops: operations of one image.
        peak_operations: operations per call of each peak.
        precision: whose peak is the measure.
    """
    # The best round, not the median: a peak is what the machine can do when nobody disturbs it.
    peaks = {name: operations / min(row[name] for row in rows) for name, operations in peak_operations.items()}
    kind = max((name for name in peaks if name.endswith(precision)), key=lambda name: peaks[name])
    first = batches[0]
    ratios = speed_ratios(rows, f"served_{first}", f"ancestor_{first}")
    return {
        "ratio": statistics.median(ratios),
        "ratio_spread": spread(ratios),
        "batches": {str(batch): _batch(rows, batch, batch * image_flops / peaks[kind]) for batch in batches},
        "gflop_per_image": image_flops / 1e9,
        "peak_gflop_per_s": {name: value / 1e9 for name, value in peaks.items()},
        "limit": limit(median(rows, f"served_{first}"), _outside(rows, first), first * image_flops / peaks[kind], kind),
    }


def _batch(rows: Rows, batch: int, floor_s: float) -> dict[str, Any]:
    """Return what there is to say of one batch size, for which the peak alone would need `floor_s`."""
    seconds = {name: median(rows, f"{name}_{batch}") for name in (*FORMS, *PARTS)}
    ratios = {f"{one}/{other}": speed_ratios(rows, f"{one}_{batch}", f"{other}_{batch}") for one, other in RATIOS}
    return {
        "ms": {name: value * 1e3 for name, value in seconds.items()},
        "images_per_s": {name: batch / seconds[name] for name in FORMS},
        "ratios": {name: statistics.median(values) for name, values in ratios.items()},
        "spreads": {
            **{name: spread([row[f"{name}_{batch}"] for row in rows]) for name in FORMS},
            **{name: spread(values) for name, values in ratios.items()},
        },
        "share_of_peak": {name: floor_s / seconds[name] for name in FORMS},
    }


def _outside(rows: Rows, batch: int) -> float:
    """Return the seconds of a call that are spent neither in convolutions nor in what an engine folds into them."""
    return median(rows, f"input_{batch}") + median(rows, f"select_{batch}")


def limit(served_s: float, outside_s: float, floor_s: float, kind: str) -> str:
    """Say in a sentence what keeps the served form from being faster.

    Args:
        served_s: from bytes to boxes.
        outside_s: of that, input and selection.
        floor_s: what the operations alone take at the peak.
        kind: whose peak.
    """
    share, outside = floor_s / served_s, outside_s / served_s
    where = (
        f"of {served_s * 1e3:.1f} ms, the network's operations account for {floor_s * 1e3:.1f} ms ({share:.0%}) at the peak of {kind}, "
        f"input and selection for {outside_s * 1e3:.1f} ms ({outside:.0%})"
    )
    if share >= COMPUTE_BOUND:
        return f"compute: {where}; in this precision at most {max(1 / share, 1):.2f} times that speed is left"
    if outside >= OUTSIDE_BOUND:
        return f"input and selection: {where}"
    return f"memory traffic and layers too small for the peak: {where}"

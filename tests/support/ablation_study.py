"""Make up studies of an ablation whose numbers are known."""

import numpy as np

from yolor_ray.config.variants import BASELINE, VARIANTS
from yolor_ray.study.results import METRICS, Cost, Failure, Prior, Study, TrialResult

SHIFT = {"add": 0, "concat": 0, "multiply": 1, "project": 1}


def trial(variant, seed, ap, setting="", priors=(), **metrics):
    """A trial whose metrics are all `ap` unless given, whatever images are drawn."""
    found = {**dict.fromkeys(METRICS, ap), **metrics}
    resampled = np.tile([found[name] for name in METRICS], (20, 1))
    return TrialResult(variant, setting, seed, f"file:///runs/{variant}-{seed}", found, resampled, tuple(priors), 3.5)


def study(aps, settings=("",), **words):
    """A study of {variant: AP of each seed, None where it has no trial}, the same under each setting."""
    made = [trial(name, seed, ap, setting) for setting in settings for name in aps for seed, ap in enumerate(aps[name]) if ap is not None]
    given = {"trials": tuple(made), "failures": (), "costs": {}, "classes": ("cat",), "summary": {"images": 100}, **words}
    return Study(variants=tuple(aps), settings=tuple(settings), **given)


def cost(parameters=1000, flops=2e9, fused_ms=10.0, unfused_ms=14.0):
    return Cost(parameters, flops, 900, 1.5e9, unfused_ms, fused_ms)


def failure(variant="fa-add", reason="ran out of memory", setting="", seed=2):
    return Failure(variant, setting, seed, f"file:///runs/{variant}-{seed}", reason)


def priors_of(variant, classes, seed, levels=3, channels=8, anchors=3):
    """Priors as they may have been learned: objectness up, classes down."""
    implicit = VARIANTS[variant].implicit
    rng = np.random.default_rng(seed)
    made = []
    for level in range(levels):
        if implicit.align != "none":
            values = SHIFT[implicit.align] + 0.1 * rng.standard_normal(channels * 2**level)
            made.append(Prior("align", level, implicit.align, values))
        if implicit.refine != "none":
            means = np.concatenate(([0, 0, 0.1, 0.2, 2.6], np.linspace(-0.5, -1.6, classes)))
            values = SHIFT[implicit.refine] + means + 0.05 * rng.standard_normal((anchors, 5 + classes))
            made.append(Prior("refine", level, implicit.refine, values))
    return made


def learned(variants, classes=3, seeds=2, settings=("",)):
    """A study whose trials have priors."""
    names = tuple(f"class {k}" for k in range(classes))
    made = [trial(v, seed, 0.3, s, priors_of(v, classes, seed)) for s in settings for v in (BASELINE, *variants) for seed in range(seeds)]
    return study(dict.fromkeys((BASELINE, *variants), ()), settings, trials=tuple(made), classes=names)

"""Ablation studies with made-up, known numbers."""

import numpy as np

from yolor_ray.config.variants import BASELINE, VARIANTS
from yolor_ray.study.results import METRICS, Cost, Failure, Prior, Study, TrialResult

NEUTRAL = {"add": 0, "concat": 0, "multiply": 1, "project": 0.7}


def make_trial(variant, seed, ap, setting="", priors=(), **metrics):
    """Return a trial with every metric equal to `ap` unless given, on every resample of the images."""
    values = {**dict.fromkeys(METRICS, ap), **metrics}
    resampled = np.tile([values[name] for name in METRICS], (20, 1))
    return TrialResult(variant, setting, seed, f"file:///runs/{variant}-{seed}", values, resampled, tuple(priors), 3.5)


def make_study(aps, settings=("",), **fields):
    """Return a study of {variant: AP of each seed, None for a missing trial}, the same under each setting."""
    trials = [
        make_trial(name, seed, ap, setting) for setting in settings for name in aps for seed, ap in enumerate(aps[name]) if ap is not None
    ]
    defaults = {"trials": tuple(trials), "failures": (), "costs": {}, "classes": ("cat",), "summary": {"images": 100}}
    return Study(variants=tuple(aps), settings=tuple(settings), **defaults | fields)


def make_cost(parameters=1000, flops=2e9, fused_ms=10.0, unfused_ms=14.0):
    return Cost(parameters, flops, 900, 1.5e9, unfused_ms, fused_ms)


def make_failure(variant="fa-add", reason="ran out of memory", setting="", seed=2):
    return Failure(variant, setting, seed, f"file:///runs/{variant}-{seed}", reason)


def make_priors(variant, classes, seed, levels=3, channels=8, anchors=3):
    """Return plausible learned priors: objectness raised, classes lowered."""
    implicit = VARIANTS[variant].implicit
    rng = np.random.default_rng(seed)
    priors = []
    for level in range(levels):
        if implicit.align != "none":
            values = NEUTRAL[implicit.align] + 0.1 * rng.standard_normal(channels * 2**level)
            priors.append(Prior("align", level, implicit.align, values))
        if implicit.refine != "none":
            means = np.concatenate(([0, 0, 0.1, 0.2, 2.6], np.linspace(-0.5, -1.6, classes)))
            values = means + 0.05 * rng.standard_normal((anchors, 5 + classes))
            unknown = {"add": slice(2, None), "multiply": slice(0, 2)}
            for operator in implicit.refine.split("_"):
                of_operator = NEUTRAL[operator] + values
                of_operator[:, unknown[operator] if "_" in implicit.refine else slice(0)] = np.nan
                priors.append(Prior("refine", level, operator, of_operator))
    return priors


def make_study_with_priors(variants, classes=3, seeds=2, settings=("",)):
    """Return a study of the baseline and `variants` whose trials have priors."""
    names = (BASELINE, *variants)
    trials = [make_trial(v, seed, 0.3, s, make_priors(v, classes, seed)) for s in settings for v in names for seed in range(seeds)]
    return make_study(dict.fromkeys(names, ()), settings, trials=tuple(trials), classes=tuple(f"class {k}" for k in range(classes)))

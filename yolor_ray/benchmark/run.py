"""Run a benchmark, and add the command and the commit to its result.

The ratios of a result were measured in one run, on the machine that the result names.
"""

import time
from collections.abc import Callable
from typing import Any

from yolor_ray.benchmark.http_load import http_load
from yolor_ray.benchmark.inference import inference
from yolor_ray.benchmark.ingest import ingest
from yolor_ray.benchmark.learning import learning
from yolor_ray.benchmark.prediction import prediction
from yolor_ray.benchmark.scale import scale
from yolor_ray.benchmark.scoring import scoring
from yolor_ray.config.benchmark import (
    HttpConfig,
    InferenceConfig,
    IngestConfig,
    LearningConfig,
    PredictionConfig,
    ScaleConfig,
    ScoringConfig,
)
from yolor_ray.report.provenance import command, commit

BENCHMARKS: dict[type, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    IngestConfig: ("ingest", ingest),
    InferenceConfig: ("inference", inference),
    LearningConfig: ("learning", learning),
    ScoringConfig: ("scoring", scoring),
    PredictionConfig: ("predict", prediction),
    ScaleConfig: ("scale", scale),
    HttpConfig: ("http", http_load),
}


Config = IngestConfig | InferenceConfig | LearningConfig | ScoringConfig | PredictionConfig | ScaleConfig | HttpConfig


def benchmark(config: Config) -> dict[str, Any]:
    """Return the benchmark's result, `machine` and `settings` included, with its command and commit."""
    started = time.monotonic()
    name, measure = BENCHMARKS[type(config)]
    result = measure(config)
    return {
        "benchmark": name,
        **result,
        "command": command(),
        "commit": commit(),
        "seconds": round(time.monotonic() - started, 1),
    }

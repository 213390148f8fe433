"""Run a benchmark and return ratios that were measured in one run, with the command, the commit and the machine."""

import time
from collections.abc import Callable
from typing import Any

from yolor_ray.benchmark.inference import inference
from yolor_ray.benchmark.ingest import ingest
from yolor_ray.config.benchmark import InferenceConfig, IngestConfig
from yolor_ray.report.provenance import command, commit

MEASURES: dict[type, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    IngestConfig: ("ingest", ingest),
    InferenceConfig: ("inference", inference),
}


def benchmark(config: IngestConfig | InferenceConfig) -> dict[str, Any]:
    """Return what the benchmark found, `machine` and `settings` among it, and what it was run with."""
    started = time.monotonic()
    name, measure = MEASURES[type(config)]
    found = measure(config)
    return {
        "benchmark": name,
        **found,
        "command": command(),
        "commit": commit(),
        "seconds": round(time.monotonic() - started, 1),
    }

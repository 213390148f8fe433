"""Measure on this machine or cluster: `python jobs/benchmark.py ingest PRESET --data.train URL`; `--help` lists the benchmarks."""

from yolor_ray.cli import run_preset
from yolor_ray.config.benchmark import BENCHMARK_DESCRIPTIONS, BENCHMARKS

if __name__ == "__main__":
    run_preset(BENCHMARKS, BENCHMARK_DESCRIPTIONS, "yolor_ray.benchmark.run:benchmark")

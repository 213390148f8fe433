import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from yolor_ray.benchmark import ingest
from yolor_ray.benchmark.run import benchmark
from yolor_ray.config import ClusterConfig, DataConfig, NetworkConfig, OptimConfig, RunConfig
from yolor_ray.config.benchmark import IngestConfig
from yolor_ray.config.presets import PRESETS
from yolor_ray.data.shards.dataset import open_dataset, read_row_group
from yolor_ray.data.shards.union import unite
from yolor_ray.errors import ConfigError
from yolor_ray.pack.run import pack_scenes
from yolor_ray.report.provenance import commit, machine
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner

REPOSITORY = Path(__file__).parents[2]
TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1)
IMAGES = 24


@pytest.fixture
def small(tmp_path):
    """Configuration of a run that takes a second: 24 scenes, a tiny network."""
    data = str(tmp_path / "data")
    pack_scenes(data, IMAGES, seed=0, size_px=96)
    return dataclasses.replace(
        PRESETS["demo"],
        network=TINY,
        data=DataConfig(train=data, val=data, image_px=64),
        optim=OptimConfig(epochs=2, batch=4, nominal_batch=8),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=str(tmp_path / "runs")),
    )


@pytest.fixture(autouse=True)
def _threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_benchmark_reports_each_round_and_the_medians(small):
    result = benchmark(IngestConfig(small, rounds=3))
    rounds = result["rounds"]
    assert len(rounds) == 3
    assert all(value > 0 for row in rounds for value in row.values())
    for name in ("raw", "ingest", "step", "whole"):
        assert result["images_per_s"][name] == statistics.median(row[name] for row in rounds)
    assert result["ratio"] == statistics.median(row["whole"] / min(row["ingest"], row["step"]) for row in rounds)
    assert result["first_batch_s"] == statistics.median(row["first_batch_s"] for row in rounds)
    assert result["shared_ratio"] > 0
    json.dumps(result, allow_nan=False)


def test_a_benchmark_names_command_commit_machine_and_settings(small, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jobs/benchmark.py", "ingest", "--rounds", "1"])
    result = benchmark(IngestConfig(small, rounds=1, steps=2))
    assert result["command"] == "python jobs/benchmark.py ingest --rounds 1"
    assert result["commit"] == commit()
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["torch"] == torch.__version__
    expected = {"data": small.data.train, "images": IMAGES, "image_px": 64, "batch": 4, "workers": 0, "decode_threads": 1, "steps": 2}
    expected["source"] = "auto"
    assert expected.items() <= result["settings"].items()


def test_ratios_compare_the_whole_with_the_slower_of_the_same_round():
    rounds = [
        {"raw": 100.0, "ingest": 100.0, "step": 20.0, "whole": 18.0, "first_batch_s": 0.1},
        {"raw": 20.0, "ingest": 10.0, "step": 40.0, "whole": 8.0, "first_batch_s": 0.1},
        {"raw": 62.5, "ingest": 50.0, "step": 50.0, "whole": 25.0, "first_batch_s": 0.1},
    ]
    ratios = ingest._ratios(rounds)
    assert ratios["ratio"] == pytest.approx(0.8)
    assert ratios["ratio_spread"] == pytest.approx(0.4 / 0.8)
    assert ratios["shared_ratio"] == pytest.approx(1.0)
    assert ratios["raw_ratio"] == pytest.approx(0.8)
    assert "workers_ratio" not in ratios
    alone = [{**row, "alone": row["step"] / ratio} for row, ratio in zip(rounds, (0.5, 0.9, 0.8), strict=True)]
    assert ingest._ratios(alone)["workers_ratio"] == pytest.approx(0.8)


class FakeClock:
    """Clock of the benchmark: every reading takes a millisecond, and the faked parts of a run take the time of `advance`."""

    def __init__(self):
        self._now = itertools.count()
        self.offset_s = 0.0

    def perf_counter(self):
        return next(self._now) / 1000 + self.offset_s

    def advance(self, seconds):
        self.offset_s += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(ingest, "time", clock)
    return clock


def _measure(train, wrap_source=None, **options):
    """Measure a run in this process, with its source of row groups wrapped."""
    context = ingest.prepare(ingest._steady_config(IngestConfig(train)), train.run.storage)
    if wrap_source:
        context = dataclasses.replace(context, source=wrap_source(context.source))
    return ingest.measure_worker(context, DistContext(0, 1, torch.device("cpu")), lambda row: None, **options)


def test_a_slow_source_slows_the_ingest_and_the_whole_but_not_the_step(small, clock):
    delay_s = 1000.0

    def slow(source):
        def read(groups):
            for table in source(groups):
                clock.advance(delay_s)
                yield table

        return read

    (row,) = _measure(small, slow, rounds=1, max_batches=0)["rounds"]
    assert row["ingest"] == pytest.approx(IMAGES / delay_s, rel=1e-3)
    assert row["whole"] == pytest.approx(IMAGES / delay_s, rel=1e-3)
    assert row["first_batch_s"] == pytest.approx(delay_s, rel=1e-3)
    assert row["step"] > 100 and row["raw"] > 100


def test_a_slow_step_slows_the_step_and_the_whole_but_not_the_ingest(small, clock, monkeypatch):
    delay_s = 1000.0
    learn = Learner.learn

    def slow(learner, *arguments, **options):
        clock.advance(delay_s)
        return learn(learner, *arguments, **options)

    monkeypatch.setattr(Learner, "learn", slow)
    measurement = _measure(small, rounds=1, max_batches=3)
    (row,) = measurement["rounds"]
    assert measurement["steps"] == 3
    assert row["step"] == pytest.approx(small.optim.batch / delay_s, rel=1e-3)
    assert row["whole"] == pytest.approx(small.optim.batch / delay_s, rel=1e-3)
    assert row["ingest"] > 100


def test_every_measurement_takes_a_whole_epoch_unless_limited(small):
    assert _measure(small, rounds=1, max_batches=0)["steps"] == IMAGES // small.optim.batch
    assert _measure(small, rounds=1, max_batches=100)["steps"] == IMAGES // small.optim.batch


def test_plain_reading_gives_the_tables_of_a_union_without_verification(small, tmp_path, monkeypatch):
    pack_scenes(str(tmp_path / "more"), 70, seed=1, size_px=96)
    dataset = unite([open_dataset(small.data.train), open_dataset(str(tmp_path / "more"))])
    expected = [read_row_group(dataset, group) for group in dataset.row_groups]
    monkeypatch.setattr("yolor_ray.data.shards.shard_file._verified", lambda *_: pytest.fail("verified"))
    assert len(expected) == 3
    assert [table.to_pydict() for table in ingest.plain_source(dataset)(dataset.row_groups)] == [table.to_pydict() for table in expected]


def test_the_chosen_source_feeds_the_benchmark(small, monkeypatch):
    made, taken = [], []

    def make(dataset):
        made.append(dataset.url)
        return lambda groups: (taken.append(group) or read_row_group(dataset, group) for group in groups)

    monkeypatch.setitem(ingest.SOURCES, "direct", make)
    result = benchmark(IngestConfig(small, rounds=1, source="direct"))
    assert made == [small.data.train]
    # The warm-up, the ingest and the whole read the row group once each.
    assert len(taken) == 3
    assert result["settings"]["source"] == "direct"


def test_elastic_workers_and_numbers_out_of_range_are_refused(small):
    with pytest.raises(ConfigError, match=r"cluster\.workers: found '1-2', expected one number"):
        IngestConfig(dataclasses.replace(small, cluster=ClusterConfig(workers="1-2")))
    with pytest.raises(ConfigError, match="rounds, steps: found 0, 0, expected 1 or more and 0 or more"):
        IngestConfig(small, rounds=0)


def test_the_commit_is_unknown_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"


def test_the_description_of_the_machine_names_no_folder():
    description = machine()
    assert description["cpu"]
    assert description["memory_gb"] > 0
    assert not any("/" in str(value) for value in description.values() if value != description["cpu"])


def test_the_job_prints_one_result(tmp_path):
    options = "ingest --rounds 1 --steps 2 nano"
    flags = "--data.train scenes:8 --data.val scenes:2 --data.image_px 64 --optim.batch 4 --cluster.compute_threads 1"
    command = [sys.executable, "jobs/benchmark.py", *options.split(), *flags.split(), "--run.storage", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "ingest"
    assert result["command"].startswith(f"python jobs/benchmark.py {options}")
    assert result["ratio"] > 0

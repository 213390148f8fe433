import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from yolor_ray.benchmark import ingest
from yolor_ray.benchmark.ingest_rounds import measure
from yolor_ray.benchmark.run import benchmark
from yolor_ray.config import ClusterConfig, DataConfig, NetworkConfig, OptimConfig, RunConfig
from yolor_ray.config.benchmark import IngestConfig
from yolor_ray.config.presets import PRESETS
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
    """A run that a laptop takes a second for: 24 scenes, a tiny network."""
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


def test_a_benchmark_reports_each_round_and_its_medians(small):
    found = benchmark(IngestConfig(small, rounds=3))
    rounds = found["rounds"]
    assert len(rounds) == 3
    assert all(value > 0 for row in rounds for value in row.values())
    for name in ("ingest", "step", "whole"):
        assert found["images_per_s"][name] == statistics.median(row[name] for row in rounds)
    assert found["ratio"] == statistics.median(row["whole"] / min(row["ingest"], row["step"]) for row in rounds)
    assert found["first_batch_s"] == statistics.median(row["first_batch_s"] for row in rounds)
    assert found["shared_ratio"] > 0
    json.dumps(found, allow_nan=False)


def test_a_benchmark_says_what_it_was_measured_with(small, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jobs/benchmark.py", "ingest", "--rounds", "1"])
    found = benchmark(IngestConfig(small, rounds=1, steps=2))
    assert found["command"] == "python jobs/benchmark.py ingest --rounds 1"
    assert found["commit"] == commit()
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["torch"] == torch.__version__
    expected = {"data": small.data.train, "images": IMAGES, "image_px": 64, "batch": 4, "workers": 0, "decode_threads": 1, "steps": 2}
    assert expected.items() <= found["settings"].items()


def test_ratios_compare_the_whole_with_the_slower_part_of_the_same_round():
    rounds = [
        {"ingest": 100.0, "step": 20.0, "whole": 18.0, "first_batch_s": 0.1},
        {"ingest": 10.0, "step": 40.0, "whole": 8.0, "first_batch_s": 0.1},
        {"ingest": 50.0, "step": 50.0, "whole": 25.0, "first_batch_s": 0.1},
    ]
    found = ingest._ratios(rounds)
    assert found["ratio"] == pytest.approx(0.8)
    assert found["ratio_spread"] == pytest.approx(0.4 / 0.8)
    assert found["shared_ratio"] == pytest.approx(1.0)


def _measured(train, source=None, **options):
    """The rounds of a run in this process, with what `source` makes of its source."""
    context = ingest.prepare(ingest._steady(IngestConfig(train)), train.run.storage)
    context = dataclasses.replace(context, source=source(context.source) if source else context.source)
    return measure(context, DistContext(0, 1, torch.device("cpu")), lambda row: None, **options)


def test_a_slow_source_slows_the_ingest_and_the_whole_but_not_the_step(small):
    delay_s = 1.0

    def slow(source):
        def read(groups):
            for table in source(groups):
                time.sleep(delay_s)
                yield table

        return read

    (row,) = _measured(small, slow, rounds=1, limit=0)["rounds"]
    assert row["ingest"] <= IMAGES / delay_s
    assert row["whole"] <= IMAGES / delay_s
    assert row["first_batch_s"] >= delay_s
    assert row["step"] > IMAGES / delay_s


def test_a_slow_step_slows_the_step_and_the_whole_but_not_the_ingest(small, monkeypatch):
    delay_s = 0.2
    learn = Learner.learn

    def slow(learner, *arguments, **options):
        time.sleep(delay_s)
        return learn(learner, *arguments, **options)

    monkeypatch.setattr(Learner, "learn", slow)
    found = _measured(small, rounds=1, limit=3)
    (row,) = found["rounds"]
    per_batch = small.optim.batch / delay_s
    assert found["steps"] == 3
    assert row["step"] <= per_batch
    assert row["whole"] <= per_batch
    assert row["ingest"] > per_batch


def test_every_measure_takes_a_whole_epoch_unless_limited(small):
    assert _measured(small, rounds=1, limit=0)["steps"] == IMAGES // small.optim.batch
    assert _measured(small, rounds=1, limit=100)["steps"] == IMAGES // small.optim.batch


def test_elastic_workers_and_numbers_out_of_range_are_refused(small):
    with pytest.raises(ConfigError, match=r"cluster\.workers: found '1-2', expected one number"):
        IngestConfig(dataclasses.replace(small, cluster=ClusterConfig(workers="1-2")))
    with pytest.raises(ConfigError, match="rounds, steps: found 0, 0, expected 1 or more and 0 or more"):
        IngestConfig(small, rounds=0)


def test_the_commit_is_unknown_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"


def test_the_machine_is_described_without_naming_folders_or_hosts():
    found = machine()
    assert found["cpu"]
    assert found["memory_gb"] > 0
    assert not any("/" in str(value) for value in found.values() if value != found["cpu"])


def test_the_job_prints_one_result(tmp_path):
    options = "ingest --rounds 1 --steps 2 nano"
    flags = "--data.train scenes:8 --data.val scenes:2 --data.image_px 64 --optim.batch 4 --cluster.compute_threads 1"
    command = [sys.executable, "jobs/benchmark.py", *options.split(), *flags.split(), "--run.storage", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["benchmark"] == "ingest"
    assert found["command"].startswith(f"python jobs/benchmark.py {options}")
    assert found["ratio"] > 0

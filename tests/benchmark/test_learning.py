"""The learning benchmark on a tiny network, and its arithmetic on curves with chosen numbers."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import pytest

from tiny_run import TINY, Killed, kill_after
from yolor_ray import cli
from yolor_ray.benchmark import learning as learning_module
from yolor_ray.benchmark.curves import ComparedCurves, Curve, CurvePoint, mean_curve, read_curves
from yolor_ray.benchmark.learning import choose_epochs, make_curve
from yolor_ray.benchmark.learning_report import LearningResult, learning_files
from yolor_ray.benchmark.run import benchmark
from yolor_ray.config import AugmentConfig, ClusterConfig, DataConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.config.benchmark import LearningConfig
from yolor_ray.config.presets import PRESETS
from yolor_ray.errors import ConfigError, DataError, NotFoundError
from yolor_ray.pack.run import pack_scenes
from yolor_ray.train.settings_lock import BENCHMARK_FILE

pytestmark = pytest.mark.usefixtures("undrawn")

PNG_SIGNATURE = b"\x89PNG"
CORES_BEFORE = os.sched_getaffinity(0)
IMAGES, IMAGES_PER_S, EPOCHS = 12, 24.0, 3
BUDGET_MINUTES = EPOCHS * IMAGES / IMAGES_PER_S / 60


@pytest.fixture
def small(tmp_path):
    """Benchmark of two seeds on 12 scenes, which takes seconds."""
    data, val = str(tmp_path / "data"), str(tmp_path / "val")
    pack_scenes(data, IMAGES, seed=0, size_px=96)
    pack_scenes(val, 4, seed=1, size_px=96)
    train = TrainConfig(
        network=TINY,
        data=DataConfig(train=data, val=val, image_px=64),
        augment=AugmentConfig(close_mosaic_epochs=2),
        optim=OptimConfig(batch=4, nominal_batch=8),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=str(tmp_path / "runs"), name="learning", seed=3, checkpoint_epochs=1),
    )
    return LearningConfig(train, minutes=BUDGET_MINUTES, seeds=2, curve="tiny")


@pytest.fixture
def known_speed(monkeypatch):
    """Make EPOCHS epochs of the budget, after a calibration run of two epochs."""
    monkeypatch.setattr(learning_module, "CALIBRATION_EPOCHS", 2)
    measure = learning_module._measure_speed
    monkeypatch.setattr(learning_module, "_measure_speed", lambda *arguments: measure(*arguments) and IMAGES_PER_S)


def write(folder: Path, text: str, name: str = "others.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.usefixtures("known_speed")
def test_a_benchmark_trains_every_seed_and_writes_table_report_and_picture(small, tmp_path):
    others = write(tmp_path, "# a note\nname,minute,AP\nrival,1,0.25\n")
    result = benchmark(dataclasses.replace(small, compare=others))
    folder = tmp_path / "runs" / "learning"
    assert result["report"] == str(folder / "learning.md")
    assert {"calibration", "seed-3", "seed-4"} <= {path.name for path in folder.iterdir() if path.is_dir()}
    assert (result["epochs"], result["seeds"], result["machine"]["cores"]) == (EPOCHS, 2, 1)
    rows = list(csv.DictReader((folder / "learning.csv").read_text().splitlines()))
    assert [(row["curve"], row["seed"], row["epoch"]) for row in rows] == [
        *(("tiny", seed, str(epoch + 1)) for seed in "34" for epoch in range(EPOCHS)),
        ("rival", "", ""),
    ]
    last = [float(row["AP"]) for row in rows if row["epoch"] == str(EPOCHS)]
    assert result["AP"] == pytest.approx(sum(last) / 2)
    assert result["AP_low"] <= result["AP"] <= result["AP_high"]
    ends = [float(row["minute"]) for row in rows if row["epoch"] == str(EPOCHS)]
    assert result["minutes"] == pytest.approx(sum(ends) / 2)
    assert result["images_per_s"] == pytest.approx(2 * EPOCHS * IMAGES / (60 * sum(ends)))
    report = (folder / "learning.md").read_text()
    assert "mean of 2 seeds" in report and "a note" in report and "rival" in report and result["commit"] in report
    assert (folder / "learning.png").read_bytes().startswith(PNG_SIGNATURE)
    assert os.sched_getaffinity(0) == CORES_BEFORE
    json.dumps(cli._without_nan(result), allow_nan=False)


@pytest.mark.usefixtures("known_speed")
def test_an_interrupted_benchmark_resumes_and_a_larger_number_of_seeds_adds_repeats(small, tmp_path, monkeypatch):
    one = dataclasses.replace(small, seeds=1)
    with monkeypatch.context() as patch:
        # Each epoch has three updates: the calibration run has six, and the seed's last epoch begins with the seventh.
        kill_after(patch, 7)
        with pytest.raises(Killed):
            benchmark(one)
    result = benchmark(one)
    seed = tmp_path / "runs" / "learning" / "seed-3"
    attempts = [json.loads(line) for line in (seed / "attempts.jsonl").read_text().splitlines()]
    assert len(attempts) == 2
    assert (result["seeds"], cli._without_nan(result)["AP_low"]) == (1, None)
    assert "one seed, no interval" in Path(result["report"]).read_text()
    minutes = result["minutes"]
    again = benchmark(small)
    assert again["seeds"] == 2 and again["epochs"] == result["epochs"]
    assert len((seed / "attempts.jsonl").read_text().splitlines()) == 2
    rows = list(csv.DictReader((tmp_path / "runs" / "learning" / "learning.csv").read_text().splitlines()))
    assert float(rows[EPOCHS - 1]["minute"]) == minutes


def test_a_benchmark_with_other_settings_needs_another_name(small, tmp_path, monkeypatch):
    monkeypatch.setattr(learning_module, "train", lambda config: pytest.fail("trained"))
    folder = tmp_path / "runs" / "learning"
    folder.mkdir(parents=True)
    stored = {"kind": "learning", "minutes": 3.0, "train": dataclasses.asdict(small.train)}
    (folder / BENCHMARK_FILE).write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"a benchmark was started with other settings: minutes was 3\.0 and is now"):
        benchmark(small)


def test_the_calibration_has_the_settings_of_the_seeds_and_its_first_epoch_does_not_count(small, monkeypatch):
    trained = []
    monkeypatch.setattr(learning_module, "train", trained.append)
    rows = [{"records": 10, "images_per_s": speed} for speed in (1.0, 10.0, 20.0)]
    monkeypatch.setattr(learning_module, "read_metrics", lambda run: rows)
    assert learning_module._measure_speed(small.train, "folder") == pytest.approx(20 / 1.5)
    (calibration,) = trained
    assert (calibration.run.storage, calibration.run.name, calibration.optim.epochs) == ("folder", "calibration", 3)
    assert calibration.augment.close_mosaic_epochs == 0
    assert calibration.network == small.train.network and calibration.data == small.train.data


@pytest.mark.parametrize(("minutes", "epochs"), [(1.0, 3), (0.34, 1), (10.0, 30), (0.52, 2)])
def test_the_epochs_are_those_that_fill_the_minutes_best(minutes, epochs):
    assert choose_epochs(minutes, images=200, images_per_s=10) == epochs


def test_a_budget_shorter_than_an_epoch_is_refused():
    expected = r"minutes: found 0\.3, expected 0\.33 or more: that is one epoch of 200 images at 10 images/s"
    with pytest.raises(ConfigError, match=expected):
        choose_epochs(0.3, images=200, images_per_s=10)


def test_validations_are_a_tenth_of_the_budget_apart(small, monkeypatch):
    trained = []
    monkeypatch.setattr(learning_module, "train", trained.append)
    row = {"records": 10, "images_per_s": 10.0, "epoch": 1, "AP": 0.5, "AP50": 0.6}
    monkeypatch.setattr(learning_module, "read_metrics", lambda run: [row])
    for epochs in (4, 10, 96):
        learning_module._train_seed(small, small.train, "folder", epochs, 7)
    assert [(run.optim.epochs, run.run.validate_epochs) for run in trained] == [(4, 1), (10, 1), (96, 10)]
    assert {(run.run.seed, run.run.name) for run in trained} == {(7, "seed-7")}


def test_a_minute_counts_whole_epochs_without_validations_also_after_a_restart():
    validated = {"AP": 0.25, "AP50": -1.0}
    rows = [
        {"epoch": 1, "records": 60, "images_per_s": 2.0, "seconds": 30.0},
        # The restart came after two thirds of the epoch.
        {"epoch": 2, "records": 60, "images_per_s": 2.0, "seconds": 10.0, **validated},
        {"epoch": 3, "records": 60, "images_per_s": 1.0, "seconds": 60.0, **validated},
    ]
    curve = make_curve("c", 5, rows)
    points = [(point.epoch, point.minute, point.AP, point.images_per_s) for point in curve.points]
    assert points == [
        (2, 1.0, 0.25, 2.0),
        (3, 2.0, 0.25, 1.0),
    ]
    # -1 is the number for nothing to measure on.
    assert all(point.AP50 != point.AP50 for point in curve.points)


def seed_curve(seed, *points):
    return Curve("c", tuple(CurvePoint(minute, ap, ap, epoch, 1.0) for epoch, (minute, ap) in enumerate(points, start=1)), seed)


def test_the_mean_over_seeds_has_a_t_interval_and_the_mean_minute():
    first, last = mean_curve([seed_curve(0, (1.0, 0.2), (2.0, 0.4)), seed_curve(1, (1.2, 0.2), (2.4, 0.5))])
    assert (first.minute, last.minute, last.epoch) == (pytest.approx(1.1), pytest.approx(2.2), 2)
    assert (first.AP.mean, first.AP.low, first.AP.high) == pytest.approx((0.2, 0.2, 0.2))
    # Student's t with one degree of freedom is 12.706; the standard error is 0.05.
    assert (last.AP.mean, last.AP.low, last.AP.high) == pytest.approx((0.45, 0.45 - 0.6353, 0.45 + 0.6353), abs=1e-4)


def test_the_report_names_the_seeds_that_missed_the_budget_by_more_than_a_tenth():
    curves = (seed_curve(0, (1.3, 0.2)), seed_curve(1, (1.09, 0.2)), seed_curve(2, (0.8, 0.3)))
    report = learning_files(LearningResult(1.0, curves, ComparedCurves(), {}))["learning.md"].decode()
    assert "Seed 0 missed the budget: found 1.30 minutes of training, expected 1 (30% more)" in report
    assert "Seed 2 missed the budget: found 0.80 minutes of training, expected 1 (20% less)" in report
    assert "Seed 1" not in report


def test_a_report_of_curves_without_a_number_and_with_odd_names_is_drawn():
    curve = Curve("_$odd", (CurvePoint(1.0, float("nan"), epoch=1),), 0)
    files = learning_files(LearningResult(1.0, (curve,), ComparedCurves((Curve("$x$ |", (CurvePoint(1.0, 0.2),)),)), {}))
    assert files["learning.png"].startswith(PNG_SIGNATURE)
    assert "AP – after 1.00 minutes" in files["learning.md"].decode()


def test_a_file_holds_a_curve_for_each_set_and_size(tmp_path):
    text = "# YOLO, one core\nset,image_px,minute,AP,AP50\na,320,2,0.2,0.4\na,320,1,0.1,\n\nb,256,1,0.3,0.5\n# end\n"
    compared = read_curves(write(tmp_path, text, "peer.csv"))
    assert compared.comments == ("YOLO, one core", "end")
    assert [curve.name for curve in compared.curves] == ["peer, a, 320 px", "peer, b, 256 px"]
    first, last = compared.curves[0].points
    assert (first.minute, first.AP, last.minute, last.AP, last.AP50) == (1.0, 0.1, 2.0, 0.2, 0.4)
    assert first.AP50 != first.AP50


def test_a_file_without_names_is_one_curve_and_the_table_of_a_benchmark_has_a_curve_for_each_seed(tmp_path):
    (only,) = read_curves(write(tmp_path, "minute,AP\n1,0.1\n2,0.2\n")).curves
    assert (only.name, len(only.points)) == ("others", 2)
    compared = ComparedCurves((Curve("rival", (CurvePoint(1.0, 0.2),)),))
    files = learning_files(LearningResult(1.0, (seed_curve(0, (1.0, 0.3)), seed_curve(1, (1.0, 0.4))), compared, {}))
    again = read_curves(write(tmp_path, files["learning.csv"].decode())).curves
    assert [curve.name for curve in again] == ["c, seed 0", "c, seed 1", "rival"]
    assert again[1].points[0].AP == 0.4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"others\.csv: found no columns, expected minute and AP among the columns"),
        ("# only a note\n", r"others\.csv: found no columns"),
        ("# note\nset,AP\na,0.1\n", r"others\.csv, line 2: found the columns set, AP, expected minute and AP"),
        ("minute,AP,AP\n1,0.1,0.1\n", r"line 1: found the columns minute, AP, AP, expected .* each column once"),
        ("minute,AP\n", r"line 1: found no row below the columns, expected one or more"),
        ("minute,AP\n1,0.1\n\nsoon,0.2\n", r"line 4: found 'soon' in the column minute, expected a number, 0 or more"),
        ("minute,AP\n1,nan\n", r"line 2: found 'nan' in the column AP, expected a number from 0 to 1"),
        ("minute,AP\n1,51.5\n", r"line 2: found '51\.5' in the column AP, expected a number from 0 to 1"),
        ("minute,AP\n-1,0.5\n", r"line 2: found '-1' in the column minute, expected a number, 0 or more"),
        ("minute,AP,AP50\n1,0.5,x\n", r"line 2: found 'x' in the column AP50, expected a number from 0 to 1"),
        ("minute,AP\n1\n", r"line 2: found 1 values, expected 2, one for each of the columns minute, AP"),
    ],
)
def test_a_bad_file_is_refused_by_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_curves(write(tmp_path, text))


def test_a_missing_or_binary_file_is_refused_before_anything_is_trained(small, tmp_path, monkeypatch):
    monkeypatch.setattr(learning_module, "train", lambda config: pytest.fail("trained"))
    with pytest.raises(NotFoundError):
        benchmark(dataclasses.replace(small, compare=str(tmp_path / "absent.csv")))
    (tmp_path / "binary.csv").write_bytes(b"minute\xff")
    with pytest.raises(DataError, match=r"binary\.csv: found a byte that is no UTF-8 at position 6"):
        benchmark(dataclasses.replace(small, compare=str(tmp_path / "binary.csv")))


def test_the_command_takes_a_preset_and_its_flags_in_any_order():
    arguments = ["learning", "small", "--minutes", "2", "--optim.lr", "0.02", "--seeds", "4", "--data.train", "there"]
    config = cli.read_benchmark(arguments, "program")
    assert (config.minutes, config.seeds, config.curve, config.train.optim.lr, config.train.data.train) == (2, 4, "small", 0.02, "there")
    assert config.train.network == PRESETS["small"].network
    assert (config.train.cluster.compute_threads, config.train.run.name) == (1, "learning")
    assert cli.read_benchmark(["learning"], "program").curve == "nano"


def test_the_other_benchmarks_keep_their_flags():
    config = cli.read_benchmark(["ingest", "--rounds", "1", "small", "--optim.lr", "0.02"], "program")
    assert (config.rounds, config.train.optim.lr, config.train.network) == (1, 0.02, PRESETS["small"].network)
    assert cli.read_benchmark(["inference", "--preset", "csp"], "program").preset == "csp"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 0.0}, "minutes: found 0.0, expected more than 0"),
        ({"seeds": 0}, "seeds: found 0, expected 1 or more"),
        ({"train": TrainConfig(cluster=ClusterConfig(workers="2"))}, "cluster.workers: found '2', expected 0"),
        ({"train": TrainConfig(optim=OptimConfig(epochs=9))}, "optim.epochs: found 9, expected 300: the benchmark chooses the epochs"),
        ({"train": TrainConfig(run=RunConfig(validate_epochs=2))}, "run.validate_epochs: found 2, expected 10: the benchmark chooses"),
    ],
)
def test_values_out_of_range_and_settings_that_the_benchmark_chooses_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        LearningConfig(**{"train": TrainConfig(), **changes})

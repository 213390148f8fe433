"""Training in this process: the run's folder, exact resume, and refused runs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_run import TINY, kill_after, tiny_run
from yolor_ray.data.shards.dataset import open_dataset, write_dataset
from yolor_ray.errors import ConfigError, DataError, NonFiniteLossError, UserError, WeightsError
from yolor_ray.io import manifest
from yolor_ray.model.weights import load_weights, save_weights
from yolor_ray.pack.run import pack_scenes
from yolor_ray.train.datasets.opening import open_datasets
from yolor_ray.train.elastic.worker_group import run_in_process
from yolor_ray.train.learner import Learner
from yolor_ray.train.run import prepare, train
from yolor_ray.train.run_log import read_metrics


@pytest.mark.usefixtures("undrawn")
def test_progress_and_epochs_are_logged_as_events(folder: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("yolor_ray.train.run_log.LOG_EVERY_S", -1.0)
    with caplog.at_level("INFO"):
        train(tiny_run(folder, "logged"))
    assert "event=progress epoch=0.17/3 loss=" in caplog.text
    assert "event=epoch epoch=3/3 lr=" in caplog.text


def test_a_run_folder_that_a_worker_cannot_see_is_refused_before_training(folder: Path) -> None:
    context = prepare(tiny_run(folder, "elsewhere"), str(folder / "elsewhere"))
    with pytest.raises(ConfigError, match=r"run\.storage: found no config\.json in .*elsewhere on a worker's node, expected"):
        run_in_process(context)


def test_each_epoch_reports_the_number_of_its_records(uninterrupted: Path) -> None:
    assert [row["records"] for row in read_metrics(str(uninterrupted))] == [21, 21, 21]


def test_a_run_folder_holds_metrics_curves_a_report_and_two_checkpoints(uninterrupted: Path) -> None:
    rows = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [("AP" in row) for row in rows] == [False, True, True]
    assert all(np.isfinite(row["loss"]) and row["images_per_s"] > 0 for row in rows)
    for plot in ("curves.png", "report/predictions.png"):
        assert (uninterrupted / plot).read_bytes().startswith(b"\x89PNG")
    assert list((uninterrupted / "tensorboard").glob("events.*"))
    assert len(list((uninterrupted / "checkpoints").iterdir())) == 2


def test_a_finished_run_has_a_page_with_its_facts(uninterrupted: Path) -> None:
    page = (uninterrupted / "report" / "index.html").read_text()
    facts = f"Run {uninterrupted.name}", "--optim.epochs 3", "3 of 3", "1 attempt", "21 images"
    assert not [fact for fact in facts if fact not in page]
    assert manifest.read_published(str(uninterrupted / "report")).keys() >= {"index.html", "metrics.json", "predictions.png"}


def test_finished_weights_have_a_model_card(uninterrupted: Path) -> None:
    card = manifest.read_published(str(uninterrupted / "weights"))["README.md"].decode()
    _, info = load_weights(str(uninterrupted / "weights"))
    assert f"# {info.name}" in card and f" {info.metrics['AP']:.3f} |" in card and "| training   |     21 |" in card
    assert all(f"| {name} " in card for name in info.classes) and "Licence" in card and " to " in card


def test_validated_epochs_have_the_loss_on_the_validation_set_and_its_terms(uninterrupted: Path) -> None:
    first, *validated = read_metrics(str(uninterrupted))
    assert not any(name.startswith("val_") for name in first)
    for row in validated:
        terms = {name: loss for name, loss in row.items() if name.startswith("val_") and name != "val_loss"}
        assert list(terms) == ["val_box", "val_objectness", "val_cls"]
        assert row["val_loss"] == pytest.approx(sum(terms.values()))
        assert 0.2 < row["val_loss"] / row["loss"] < 5


def test_the_published_weights_are_those_of_the_best_validation(uninterrupted: Path) -> None:
    _, info = load_weights(str(uninterrupted / "weights"))
    rows = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert info.metrics["AP"] == max(row.get("AP", -1) for row in rows)
    assert info.image_px == 64
    report = json.loads((uninterrupted / "report" / "metrics.json").read_text())
    best = {name: numbers["confidence"] for name, numbers in report["classes"].items() if numbers["confidence"] is not None}
    assert info.thresholds == pytest.approx(best, abs=2e-4)


def test_a_finished_run_returns_its_result_without_training(folder: Path, uninterrupted: Path, monkeypatch) -> None:
    kill_after(monkeypatch, 0)
    assert train(tiny_run(folder, "uninterrupted"))["weights"] == str(uninterrupted / "weights")


def test_another_seed_under_the_same_name_is_refused(folder: Path, uninterrupted: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.seed was 0 and is now 1"):
        train(tiny_run(folder, "uninterrupted", seed=1))


def test_another_setting_under_the_same_name_is_refused_by_its_dotted_name(folder: Path, uninterrupted: Path) -> None:
    config = tiny_run(folder, "uninterrupted")
    with pytest.raises(ConfigError, match=r"optim\.lr was 0\.02 and is now 0\.5"):
        train(dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=0.5)))


@pytest.mark.usefixtures("undrawn")
def test_a_run_starts_from_pretrained_weights_and_logs_the_new_classes(folder: Path, uninterrupted: Path, caplog) -> None:
    source, info = load_weights(str(uninterrupted / "weights"))
    other_info = dataclasses.replace(info, classes=("zeppelin", *info.classes[1:]), thresholds={})
    save_weights(str(folder / "relabelled"), source, other_info)
    config = tiny_run(folder, "pretrained", seed=5)
    optim = dataclasses.replace(config.optim, pretrained=str(folder / "relabelled"), epochs=1, lr=1e-12, warmup_epochs=0.0)
    with caplog.at_level("INFO"):
        run = Path(train(dataclasses.replace(config, optim=optim))["run"])
    network, _ = load_weights(str(run / "weights"))
    kept, theirs = (n.backbone.stem[1].conv.weight for n in (network, source))
    torch.testing.assert_close(kept, theirs, rtol=0, atol=1e-6)
    # One class of the dataset is new to the weights; its outputs alone start from random values.
    outputs, expected = (n.head.levels[0].predict.weight.view(3, 5 + len(info.classes), -1) for n in (network, source))
    fresh = (outputs - expected).abs().amax(dim=(0, 2)) > 0.01
    assert fresh.tolist() == [False] * 5 + [True] + [False] * (len(info.classes) - 1)
    message = next(r.getMessage() for r in caplog.records if "event=pretrained" in r.getMessage())
    assert f"classes_fresh='{info.classes[0]}'" in message
    assert any("event=outputs_reinitialised" in r.getMessage() and "head.levels.0.predict.weight" in r.getMessage() for r in caplog.records)
    assert any("origin=pretrained" in r.getMessage() for r in caplog.records)


def test_pretrained_weights_of_another_network_are_refused_before_training(folder: Path, uninterrupted: Path) -> None:
    config = tiny_run(folder, "misfit")
    config = dataclasses.replace(
        config,
        network=dataclasses.replace(TINY, neck_depth=2),
        optim=dataclasses.replace(config.optim, pretrained=str(uninterrupted / "weights")),
    )
    with pytest.raises(WeightsError, match=r"network\.neck_depth: found 1, expected 2"):
        train(config)


def test_a_task_without_annotations_is_refused(folder: Path) -> None:
    url = str(folder / "alone")
    pack_scenes(url, 2, seed=0)
    scenes_set = open_dataset(url)
    write_dataset(dataclasses.replace(scenes_set, url=url, image_classes=()))
    config = tiny_run(folder, "labels")
    network = dataclasses.replace(config.network, tasks=("detect", "classify"))
    config = dataclasses.replace(config, network=network, data=dataclasses.replace(config.data, train=url, val=url))
    with pytest.raises(DataError, match=r"expected some for network.tasks: classify too"):
        open_datasets(config)


@pytest.mark.parametrize(
    ("section", "mistake"),
    [
        ("data", {"train": "data/typo"}),
        ("data", {"val": "data/typo"}),
        ("optim", {"pretrained": "weights/typo"}),
        ("optim", {"teacher": "weights/typo"}),
        ("cluster", {"gpu": True}),
        ("data", {"val": "scenes:21", "train": "scenes:none"}),
    ],
)
def test_a_run_that_failed_by_a_mistake_starts_again_under_its_name(folder: Path, section: str, mistake: dict) -> None:
    config = tiny_run(folder, "mistaken")
    wrong = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **mistake)})
    with pytest.raises(UserError):
        train(wrong)
    assert not (folder / "mistaken" / "config.json").exists()


def test_a_diverging_learning_rate_does_not_claim_the_name(folder: Path, monkeypatch) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise NonFiniteLossError("step 3: try a lower optim.lr")

    monkeypatch.setattr(Learner, "learn", diverge)
    with pytest.raises(NonFiniteLossError):
        train(tiny_run(folder, "diverged"))
    assert not (folder / "diverged" / "config.json").exists()

"""Warnings of a training that learns little: after a third of the run, and once per run."""

from pathlib import Path

import pytest

from tiny_run import tiny_run
from yolor_ray.train.context import TrainContext
from yolor_ray.train.progress.warnings_once import warn_of_little_learning


def context(tmp_path: Path, *, epochs: int = 9, lr: float = 0.002, box_px: float = 20.0) -> TrainContext:
    from dataclasses import replace

    config = tiny_run(tmp_path, "run")
    config = replace(
        config,
        data=replace(config.data, train="photos,scenes:4, more"),
        optim=replace(config.optim, epochs=epochs, lr=lr, optimizer="adamw"),
    )
    return TrainContext(config, str(tmp_path), None, None, None, None, box_px=box_px)  # type: ignore[arg-type]


def rows(*metrics: tuple[int, float, float]) -> list[dict]:
    return [{"epoch": epoch, "loss": 1.0, "AP": ap, "val_loss": val_loss} for epoch, ap, val_loss in metrics]


def test_an_ap_near_0_after_a_third_of_the_run_is_warned_of_once(tmp_path: Path, caplog) -> None:
    validations = rows((2, 0.0, 1.0), (3, 0.004, 1.0), (6, 0.0, 1.0))
    for count in (1, 2, 3):
        warn_of_little_learning(validations[:count], context(tmp_path), updates=100 * validations[count - 1]["epoch"])
    [message] = [record.getMessage() for record in caplog.records]
    assert "event=low_accuracy epoch=3/9 AP=0.0040" in message and "only 900 updates in the whole run" in message
    assert "yolor-ray pack check photos; yolor-ray pack check more; report/predictions.png" in message


@pytest.mark.parametrize(
    ("settings", "updates", "reason"),
    [
        ({"box_px": 5.25}, 9000, "half of the boxes are under 5.2 px at data.image_px 64"),
        ({"lr": 0.5}, 9000, "optim.lr 0.5 is set by hand, 0 chooses 0.002"),
        ({}, 9000, "likely='labels that do not fit the images'"),
    ],
)
def test_the_likely_reasons_of_a_low_ap_are_named(tmp_path: Path, caplog, settings: dict, updates: int, reason: str) -> None:
    warn_of_little_learning(rows((9, 0.0, 1.0)), context(tmp_path, **settings), updates)
    assert reason in caplog.text


def test_a_validation_much_worse_than_training_is_warned_of_once(tmp_path: Path, caplog) -> None:
    validations = rows((1, 0.5, 9.0), (6, 0.5, 2.5), (9, 0.5, 3.0))
    for count in (1, 2, 3):
        warn_of_little_learning(validations[:count], context(tmp_path), updates=10_000)
    [message] = [record.getMessage() for record in caplog.records]
    assert "event=validation_much_worse epoch=6/9 val_loss=2.5 loss=1 " in message


def test_a_good_training_is_not_warned_of(tmp_path: Path, caplog) -> None:
    warn_of_little_learning(rows((3, 0.2, 1.1), (9, 0.4, 0.9)), context(tmp_path), updates=10_000)
    # -1 means that the validation set has nothing to measure on.
    warn_of_little_learning(rows((9, -1.0, 0.9)), context(tmp_path), updates=10_000)
    assert not caplog.records

"""Weights of the classes in the class loss: their values, their effect on gradients, and their way from the dataset to the loss."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_run import tiny_run
from yolor_ray.config import LossConfig
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.errors import ConfigError
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.losses.class_balance import MAX_WEIGHT_RATIO, balanced_weights
from yolor_ray.train.losses.total import loss_terms


def test_a_balanced_set_has_weights_of_one():
    assert balanced_weights(np.array([7, 7, 7])) == pytest.approx(1)


def test_a_weight_is_the_inverse_square_root_of_the_frequency_and_one_on_average_over_the_boxes():
    boxes = np.array([900, 100, 25])
    weights = balanced_weights(boxes)
    assert weights / weights[0] == pytest.approx([1, 3, 6])
    assert (weights * boxes).sum() / boxes.sum() == pytest.approx(1)


def test_a_very_rare_class_weighs_at_most_ten_times_the_most_frequent_one():
    boxes = np.array([1_000_000, 1])
    weights = balanced_weights(boxes)
    assert weights[1] / weights[0] == pytest.approx(MAX_WEIGHT_RATIO)
    assert (weights * boxes).sum() / boxes.sum() == pytest.approx(1)


def test_a_class_without_boxes_has_weight_one_and_changes_no_other_weight():
    assert balanced_weights(np.array([900, 0, 100])) == pytest.approx([*balanced_weights(np.array([900, 100]))[:1], 1, 1.5 * 5 / 3])
    assert balanced_weights(np.zeros(3, np.int64)) == pytest.approx(1)


TARGETS = Targets(torch.tensor([0, 0]), torch.tensor([0, 2]), torch.tensor([[13.0, 21.0, 10.0, 12.0], [40.0, 41.0, 28.0, 33.0]]))


def class_gradients(make_learner, class_weights: torch.Tensor | None) -> tuple[float, dict[int, torch.Tensor]]:
    """Return the class loss, and the gradients of the class logits by the label of the matched box."""
    network = make_learner().network
    sides = [64 // stride for stride in network.head.strides]
    raw = [torch.zeros(1, 3, side, side, 8, requires_grad=True) for side in sides]
    loss = loss_terms({"detect": raw}, TARGETS, network, LossConfig(), class_weights)["cls"]
    loss.backward()
    rows = torch.cat([level.grad[..., 5:].reshape(-1, 3) for level in raw])
    return loss.item(), {label: rows[rows[:, label] < 0] for label in (0, 2)}


def test_the_gradient_of_a_box_grows_with_the_weight_of_its_class(make_learner):
    _, equal = class_gradients(make_learner, None)
    _, weighted = class_gradients(make_learner, torch.tensor([0.5, 1.0, 4.0]))
    torch.testing.assert_close(weighted[0], equal[0] * 0.5)
    torch.testing.assert_close(weighted[2], equal[2] * 4)


def test_weights_of_one_change_nothing(make_learner):
    loss, gradients = class_gradients(make_learner, None)
    loss_of_ones, gradients_of_ones = class_gradients(make_learner, torch.ones(3))
    assert loss == loss_of_ones
    assert all(torch.equal(gradients[label], gradients_of_ones[label]) for label in gradients)


def test_the_learner_of_a_balanced_run_has_the_weights_of_the_training_set(folder: Path) -> None:
    from yolor_ray.train.context import make_learner
    from yolor_ray.train.distributed import make_dist_context
    from yolor_ray.train.run import prepare

    config = tiny_run(folder, "weights")
    plain = prepare(config, str(folder / "weights"))
    assert make_learner(plain, make_dist_context(torch.device("cpu"))).class_weights is None
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, class_balance=True))
    learner = make_learner(prepare(config, str(folder / "weights")), make_dist_context(torch.device("cpu")))
    boxes = np.array(list(open_dataset(plain.train.url).boxes_per_class.values()))
    assert learner.class_weights is not None and learner.class_weights.numpy() == pytest.approx(balanced_weights(boxes))
    assert learner.class_weights.max() > learner.class_weights.min()


def test_crowd_regions_do_not_count(folder: Path, monkeypatch) -> None:
    from yolor_ray.data.shards.dataset import read_row_group
    from yolor_ray.train import run
    from yolor_ray.train.datasets import columns

    dataset = run.open_datasets(tiny_run(folder, "crowd"))[0]

    def read_with_crowd(*args: object) -> object:
        """Return the rows as if all objects but those of class 0 were crowd regions."""
        table = read_row_group(*args)
        crowd = [[label != 0 for label in labels] for labels in table["labels"].to_pylist()]
        return table.set_column(table.schema.get_field_index("crowd"), "crowd", [crowd])

    monkeypatch.setattr(columns, "read_row_group", read_with_crowd)
    assert run._choose_class_weights(dataset) == pytest.approx(1), "only class 0 is left"


def test_a_resumed_run_cannot_change_the_balance(folder: Path, uninterrupted: Path) -> None:
    from yolor_ray.train.run import train

    config = tiny_run(folder, "uninterrupted")
    with pytest.raises(ConfigError, match=r"loss\.class_balance was False and is now True"):
        train(dataclasses.replace(config, loss=dataclasses.replace(config.loss, class_balance=True)))

"""One training step: gathering, skipping what is not finite, sizes, and learning eight scenes by heart."""

import logging
from dataclasses import replace

import pytest
import torch

from yolor_ray.config import AugmentConfig, LossConfig
from yolor_ray.errors import NonFiniteLossError
from yolor_ray.train.learner import MAX_BAD_UPDATES, Learner
from yolor_ray.train.losses.assign import Targets

IMAGES = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TARGETS = Targets(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([[20.0, 20.0, 12.0, 14.0], [40.0, 30.0, 30.0, 28.0]]))
NO_TARGETS = Targets(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
ENDLESS = LossConfig(objectness=float("inf"))


def weights(learner: Learner) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in learner.network.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_step_moves_the_weights_and_their_average(make_learner):
    learner = make_learner()
    before, average = weights(learner), [p.clone() for p in learner.average.network.parameters()]
    parts = learner.learn(IMAGES, TARGETS, must_update=False)
    assert not equal(before, weights(learner))
    assert not equal(average, list(learner.average.network.parameters()))
    assert (learner.step, learner.average.updates) == (1, 1)
    assert not any(part.requires_grad for part in parts.values())


def test_gradients_are_gathered_over_as_many_batches_as_scheduled(make_learner):
    learner = make_learner(nominal_batch=6)
    start = weights(learner)
    settled = []
    for _ in range(3):
        assert equal(start, weights(learner))
        learner.learn(IMAGES, TARGETS, must_update=False)
        settled.append(learner.settled)
    assert settled == [False, False, True]
    assert not equal(start, weights(learner))
    assert (learner.step, learner.average.updates) == (3, 1)


def test_the_end_of_an_epoch_ends_the_gathering(make_learner):
    learner = make_learner(nominal_batch=6)
    start = weights(learner)
    learner.learn(IMAGES, TARGETS, must_update=True)
    assert learner.settled
    assert not equal(start, weights(learner))


def test_a_batch_without_boxes_is_learned_from(make_learner):
    learner = make_learner()
    parts = learner.learn(IMAGES, NO_TARGETS, must_update=True)
    assert all(torch.isfinite(part) for part in parts.values())
    assert all(torch.isfinite(weight).all() for weight in weights(learner))


def test_equal_learners_take_equal_steps(make_learner):
    first, second = make_learner(), make_learner()
    for learner in (first, second):
        for _ in range(3):
            learner.learn(IMAGES, TARGETS, must_update=True)
    assert equal(weights(first), weights(second))


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(make_learner, caplog):
    learner = make_learner(loss=ENDLESS)
    before, average = weights(learner), [p.clone() for p in learner.average.network.parameters()]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            learner.learn(IMAGES, TARGETS, must_update=True)
    assert equal(before, weights(learner))
    assert equal(average, list(learner.average.network.parameters()))
    assert learner.average.updates == 0
    assert learner.settled
    assert "event=gradient_not_finite step=2 in_a_row=2" in caplog.text
    assert all(parameter.grad is None for parameter in learner.network.parameters())


def test_one_finite_gradient_forgives_those_before(make_learner):
    learner = make_learner()
    good, bad = learner.config, replace(learner.config, loss=ENDLESS)
    for _ in range(2):
        learner.config = bad
        for _ in range(MAX_BAD_UPDATES - 1):
            learner.learn(IMAGES, TARGETS, must_update=True)
        learner.config = good
        learner.learn(IMAGES, TARGETS, must_update=True)
    assert learner.average.updates == 2


def test_too_many_gradients_in_a_row_that_are_not_finite_end_the_run(make_learner):
    learner = make_learner(loss=ENDLESS)
    before = weights(learner)
    with pytest.raises(NonFiniteLossError, match=f"step {MAX_BAD_UPDATES}: {MAX_BAD_UPDATES} updates in a row .* lower optim.lr"):
        for _ in range(MAX_BAD_UPDATES):
            learner.learn(IMAGES, TARGETS, must_update=True)
    assert learner.step == MAX_BAD_UPDATES
    assert equal(before, weights(learner))


def test_a_huge_gradient_is_clipped(make_learner):
    learner = make_learner(loss=LossConfig(box=1e6, objectness=1e6, cls=1e6), lr=0.01, clip_norm=1.0, weight_decay=0.0, momentum=0.5)
    before = weights(learner)
    learner.learn(IMAGES, TARGETS, must_update=True)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, weights(learner), strict=True)]).norm().item()
    assert moved == pytest.approx(0.01 * (1 + 0.5), rel=1e-3), "learning rate x clipped norm, with Nesterov's first step"


def test_sizes_vary_by_steps_of_the_coarsest_stride_alike_on_every_worker(make_learner):
    seen: list[list[int]] = []
    for _ in range(2):
        learner = make_learner(augment=AugmentConfig(multi_scale=0.5))
        sides: list[int] = []
        learner.network.register_forward_pre_hook(lambda _, args, sides=sides: sides.append(args[0].shape[-1]))
        for _ in range(20):
            learner.learn(IMAGES, TARGETS, must_update=True)
        seen.append(sides)
    assert seen[0] == seen[1]
    assert set(seen[0]) == {32, 48, 64, 80, 96}


def test_boxes_grow_with_the_image(make_learner, monkeypatch):
    learner = make_learner(augment=AugmentConfig(multi_scale=0.5))
    learned: list[tuple[int, torch.Tensor]] = []

    def note(raw, targets, network, gains):
        learned.append((raw["detect"][0].shape[3] * 8, targets.boxes_cxcywh))
        raise InterruptedError

    monkeypatch.setattr("yolor_ray.train.learner.loss_parts", note)
    for step in range(10):
        learner.step = step
        with pytest.raises(InterruptedError):
            learner.learn(IMAGES, TARGETS, must_update=True)
    for side, boxes in learned:
        torch.testing.assert_close(boxes, TARGETS.boxes_cxcywh * side / 64)

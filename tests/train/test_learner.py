"""Training steps: accumulation, skipped non-finite gradients, gradient clipping and image sizes."""

import logging
from dataclasses import replace

import pytest
import torch

from tiny_batch import IMAGES, INFINITE_LOSS, TARGETS, equal, weights
from yolor_ray.config import AugmentConfig, LossConfig
from yolor_ray.errors import NonFiniteLossError
from yolor_ray.train.learner import Learner
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.optim.finite_check import CHECKED_UPDATES, MAX_BAD_UPDATES

NO_TARGETS = Targets(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))


def gradients_applied(learner: Learner) -> bool:
    return all(p.grad is None for p in learner.network.parameters())


def test_a_step_moves_the_weights_and_their_average(make_learner):
    learner = make_learner()
    before, average = weights(learner), [p.clone() for p in learner.average.network.parameters()]
    terms = learner.learn(IMAGES, TARGETS, must_update=False)
    assert not equal(before, weights(learner))
    assert not equal(average, list(learner.average.network.parameters()))
    assert (learner.step, learner.average.updates) == (1, 1)
    assert not any(term.requires_grad for term in terms.values())


def test_gradients_are_accumulated_over_the_scheduled_number_of_batches(make_learner):
    learner = make_learner(nominal_batch=6)
    start = weights(learner)
    updates = []
    for _ in range(3):
        assert equal(start, weights(learner))
        updates.append(learner.updates_next)
        learner.learn(IMAGES, TARGETS, must_update=False)
    assert updates == [False, False, True]
    assert not equal(start, weights(learner))
    assert (learner.step, learner.average.updates) == (3, 1)


def test_the_end_of_an_epoch_ends_the_accumulation(make_learner):
    learner = make_learner(nominal_batch=6)
    start = weights(learner)
    learner.learn(IMAGES, TARGETS, must_update=True)
    assert gradients_applied(learner)
    assert not equal(start, weights(learner))


def test_a_batch_without_boxes_gives_a_finite_step(make_learner):
    learner = make_learner()
    terms = learner.learn(IMAGES, NO_TARGETS, must_update=True)
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(weight).all() for weight in weights(learner))


def test_equal_learners_take_equal_steps(make_learner):
    first, second = make_learner(), make_learner()
    for learner in (first, second):
        for _ in range(3):
            learner.learn(IMAGES, TARGETS, must_update=True)
    assert equal(weights(first), weights(second))


def test_a_non_finite_gradient_is_skipped_and_counted(make_learner, caplog):
    learner = make_learner(loss=INFINITE_LOSS)
    before, average = weights(learner), [p.clone() for p in learner.average.network.parameters()]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            learner.learn(IMAGES, TARGETS, must_update=True)
    assert equal(before, weights(learner))
    assert equal(average, list(learner.average.network.parameters()))
    assert learner.clipper.mean_norm == 0 and gradients_applied(learner)
    assert "event=gradient_not_finite step=2 in_a_row=2 updates=1" in caplog.text
    assert all(parameter.grad is None for parameter in learner.network.parameters())


def test_a_finite_gradient_resets_the_count_of_non_finite_ones(make_learner):
    learner = make_learner()
    finite, infinite = learner.config, replace(learner.config, loss=INFINITE_LOSS)
    for _ in range(2):
        learner.config = infinite
        for _ in range(MAX_BAD_UPDATES - 1):
            learner.learn(IMAGES, TARGETS, must_update=True)
        learner.config = finite
        learner.learn(IMAGES, TARGETS, must_update=True)
    assert learner.step == 2 * MAX_BAD_UPDATES


def test_too_many_consecutive_non_finite_gradients_end_the_run(make_learner):
    learner = make_learner(loss=INFINITE_LOSS)
    before = weights(learner)
    with pytest.raises(NonFiniteLossError, match=f"step {MAX_BAD_UPDATES}: {MAX_BAD_UPDATES} updates in a row .* lower optim.lr"):
        for _ in range(MAX_BAD_UPDATES):
            learner.learn(IMAGES, TARGETS, must_update=True)
    assert learner.step == MAX_BAD_UPDATES
    assert equal(before, weights(learner))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_skipped_update_changes_no_later_one(make_learner, optimizer):
    plain, skipping = make_learner(optimizer=optimizer, momentum=0.9), make_learner(optimizer=optimizer, momentum=0.9)
    for learner in (plain, skipping):
        learner.learn(IMAGES, TARGETS, must_update=True)
    finite, skipping.config = skipping.config, replace(skipping.config, loss=INFINITE_LOSS)
    skipping.learn(IMAGES, TARGETS, must_update=True)
    skipping.config, skipping.step = finite, 1
    for learner in (plain, skipping):
        learner.learn(IMAGES, TARGETS, must_update=True)
    assert equal(weights(plain), weights(skipping))


def test_bad_updates_are_counted_between_the_readings(make_learner, caplog):
    learner = make_learner(loss=INFINITE_LOSS)
    with caplog.at_level(logging.WARNING):
        for _ in range(CHECKED_UPDATES - 1):
            learner.learn(IMAGES, TARGETS, must_update=False)
        assert "event=gradient_not_finite" not in caplog.text
        with pytest.raises(NonFiniteLossError):
            learner.learn(IMAGES, TARGETS, must_update=False)
    assert f"event=gradient_not_finite step={CHECKED_UPDATES} in_a_row={CHECKED_UPDATES} updates={CHECKED_UPDATES}" in caplog.text


def distance(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    return torch.cat([(a - b).flatten() for a, b in zip(before, after, strict=True)]).norm().item()


def test_a_gradient_is_clipped_relative_to_earlier_ones(make_learner, monkeypatch):
    learner = make_learner(lr=0.01, clip_ratio=2.0, weight_decay=0.0, momentum=0.001, final_lr_ratio=1.0)
    learner.learn(IMAGES, NO_TARGETS, must_update=True)
    mean, before = learner.clipper.mean_norm.item(), weights(learner)
    learner.learn(IMAGES, replace(TARGETS, boxes_cxcywh=TARGETS.boxes_cxcywh * 1.01), must_update=True)
    assert distance(before, weights(learner)) <= 0.01 * 2.0 * mean * 1.01
    assert mean < learner.clipper.mean_norm <= 1.02001 * mean


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_clipping_does_not_depend_on_the_gains(make_learner, scale):
    plain, scaled = make_learner(), make_learner(loss=LossConfig(box=0.05 * scale, objectness=0.7 * scale, cls=0.3 * scale))
    for learner in (plain, scaled):
        for targets in (NO_TARGETS, TARGETS, TARGETS):
            learner._backward(IMAGES, targets, 1.0)
            learner.clipper.clip(learner.network.parameters())
            learner.optimizer.zero_grad()
    assert scaled.clipper.mean_norm.item() == pytest.approx(scale * plain.clipper.mean_norm.item(), rel=1e-2)


def test_the_size_of_a_step_does_not_depend_on_the_batch(make_learner):
    """Both learners see equal images, in one batch and in two."""
    norms = []
    for batches in (1, 2):
        learner = make_learner(nominal_batch=2 * batches)
        for _ in range(batches):
            learner.learn(IMAGES, TARGETS, must_update=False)
        assert gradients_applied(learner)
        norms.append(learner.clipper.mean_norm.item())
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_sizes_are_multiples_of_the_coarsest_stride_and_equal_on_every_worker(make_learner):
    sides_by_worker: list[list[int]] = []
    for _ in range(2):
        learner = make_learner(augment=AugmentConfig(multi_scale=0.5))
        sides: list[int] = []
        learner.network.register_forward_pre_hook(lambda _, args, sides=sides: sides.append(args[0].shape[-1]))
        for _ in range(20):
            learner.learn(IMAGES, TARGETS, must_update=True)
        sides_by_worker.append(sides)
    assert sides_by_worker[0] == sides_by_worker[1]
    assert set(sides_by_worker[0]) == {32, 48, 64, 80, 96}


def test_boxes_grow_with_the_image(make_learner, monkeypatch):
    learner = make_learner(augment=AugmentConfig(multi_scale=0.5))
    learned: list[tuple[int, torch.Tensor]] = []

    def record_targets(raw, targets, *_):
        learned.append((raw["detect"][0].shape[3] * 8, targets.boxes_cxcywh))
        raise InterruptedError

    monkeypatch.setattr("yolor_ray.train.learner.loss_terms", record_targets)
    for step in range(10):
        learner.step = step
        with pytest.raises(InterruptedError):
            learner.learn(IMAGES, TARGETS, must_update=True)
    for side, boxes in learned:
        torch.testing.assert_close(boxes, TARGETS.boxes_cxcywh * side / 64)

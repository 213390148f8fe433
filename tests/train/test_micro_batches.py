"""Micro-batches: out of memory in the first epoch, a step goes on in smaller parts."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from tiny_batch import IMAGES, TARGETS, equal, weights
from yolor_ray.errors import ConfigError
from yolor_ray.train.checkpoint.checkpoint import Progress, resume, take_checkpoint, write_checkpoint
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.optim.micro_batches import MicroBatches

FOUR_IMAGES = torch.cat((IMAGES, IMAGES.flip(1)))
FOUR_TARGETS = Targets(torch.arange(4), TARGETS.labels.repeat(2), TARGETS.boxes_cxcywh.repeat(2, 1))
CPU = torch.device("cpu")


def limit_memory(learner: Learner, images: int, *, in_backward: bool = False) -> list[int]:
    """Raise out of memory for more images than fit, in the forward pass or amid the backward pass; return the batches that fitted."""
    fitted: list[int] = []

    def fail(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def check(_: nn.Module, args: tuple[torch.Tensor], raw: dict[str, list[torch.Tensor]]) -> None:
        if len(args[0]) <= images:
            fitted.append(len(args[0]))
        elif in_backward:
            # The head's gradients are added by then, the backbone's are not.
            raw_features[0].register_hook(fail)
        else:
            fail(None)

    raw_features: list[torch.Tensor] = []
    learner.network.backbone.register_forward_hook(lambda _, __, features: raw_features.__setitem__(slice(None), features))
    learner.network.register_forward_hook(check)
    return fitted


def gradients(learner: Learner) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in learner.network.parameters()]


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_batch_that_does_not_fit_is_repeated_in_parts(make_learner, caplog, in_backward):
    learner, expected = make_learner(), make_learner()
    fitted = limit_memory(learner, 1, in_backward=in_backward)
    expected.micro_batches.count = 4
    with caplog.at_level(logging.WARNING):
        terms = learner.learn(FOUR_IMAGES, FOUR_TARGETS, must_update=True)
    assert fitted == [1] * 4
    assert [record.getMessage() for record in caplog.records] == [
        "event=out_of_memory batch=4 micro_batch=2",
        "event=out_of_memory batch=4 micro_batch=1",
    ]
    expected_terms = expected.learn(FOUR_IMAGES, FOUR_TARGETS, must_update=True)
    assert terms == expected_terms
    assert equal(weights(learner), weights(expected))
    assert (learner.step, learner.average.updates) == (1, 1)


def test_later_steps_start_in_parts(make_learner):
    learner = make_learner()
    fitted = limit_memory(learner, 2)
    for _ in range(2):
        learner.learn(FOUR_IMAGES, FOUR_TARGETS, must_update=True)
    assert fitted == [2] * 4


def test_gradients_of_earlier_batches_of_the_update_survive(make_learner):
    learner, expected = make_learner(nominal_batch=8), make_learner(nominal_batch=8)
    for each in (learner, expected):
        each.learn(IMAGES, TARGETS, must_update=False)
    earlier = gradients(learner)
    limit_memory(learner, 2, in_backward=True)
    expected.micro_batches.count = 2
    for each in (learner, expected):
        each.learn(FOUR_IMAGES, FOUR_TARGETS, must_update=False)
    assert all(p.grad is not None for p in learner.network.parameters())
    assert equal(gradients(learner), gradients(expected))
    assert not equal(gradients(learner), earlier)


def test_the_first_epoch_accumulates_bit_for_bit_like_later_ones():
    parameter = [nn.Parameter(torch.rand(5)) for _ in range(2)]
    inputs = torch.rand(3, 2, 5)
    for kept, batch in zip(range(3), inputs, strict=True):
        for index, each in enumerate(parameter):

            def backward(images, targets, weight, each=each, batch=batch):
                ((each - parameter[0].detach()).square() + each.sin() * batch).sum().mul(weight).backward()
                return {}

            parameter[1].data.copy_(parameter[0].data)
            arguments = IMAGES, TARGETS, 0.3
            MicroBatches().fit(backward, [each], *arguments) if index else MicroBatches().backward(backward, *arguments)
        assert torch.equal(parameter[0].grad, parameter[1].grad), kept


def test_the_gradient_of_parts_is_that_of_the_whole_batch():
    """A mean over the images of each part, of 2 and 3 of 5 images, adds up to the mean over all images."""
    inputs, gradients_by_count = torch.rand(5, 1, 1, 3), []
    for count in (1, 2, 5):
        parameter = nn.Parameter(torch.ones(3))

        def backward(images, targets, weight, parameter=parameter):
            loss = (parameter * images).square().sum(dim=-1).mean()
            (loss * weight).backward()
            return {"loss": loss.detach()}

        terms = MicroBatches(count).backward(backward, (inputs * 255).to(torch.uint8), FOUR_TARGETS, 2.0)
        gradients_by_count.append((parameter.grad, terms["loss"]))
    for gradient, loss in gradients_by_count[1:]:
        torch.testing.assert_close(gradient, gradients_by_count[0][0])
        torch.testing.assert_close(loss, gradients_by_count[0][1])


def test_an_image_that_does_not_fit_ends_the_run(make_learner):
    learner = make_learner()
    limit_memory(learner, 0)
    with pytest.raises(torch.OutOfMemoryError):
        learner.learn(FOUR_IMAGES, FOUR_TARGETS, must_update=True)


def test_out_of_memory_after_the_first_epoch_ends_the_run(make_learner):
    learner = make_learner()
    learner.step = learner.schedule.steps_per_epoch
    limit_memory(learner, 2)
    with pytest.raises(torch.OutOfMemoryError):
        learner.learn(FOUR_IMAGES, FOUR_TARGETS, must_update=True)


def test_one_of_several_workers_out_of_memory_ends_the_run_with_advice(make_learner, monkeypatch):
    monkeypatch.setattr("yolor_ray.train.learner.DistributedDataParallel", nn.Module)
    learner = make_learner()
    limit_memory(learner, 2)
    with pytest.raises(ConfigError, match=r"optim\.batch: found 4 images .* --cluster\.recompute_activations or more workers"):
        learner.learn(FOUR_IMAGES, FOUR_TARGETS, must_update=True)


@pytest.mark.parametrize(("workers", "count"), [(1, 2), (2, 1)])
def test_a_single_worker_resumes_in_the_parts_of_its_checkpoint(make_learner, tmp_path, monkeypatch, workers, count):
    learner, resumed = make_learner(), make_learner()
    limit_memory(learner, 2)
    learner.learn(FOUR_IMAGES, FOUR_TARGETS, must_update=True)
    progress = Progress("digest", seen=np.zeros(4, bool))
    write_checkpoint(str(tmp_path), take_checkpoint(learner, progress), 1)
    monkeypatch.setattr(DistContext, "gather", lambda self, item: [item] * workers)
    resume(str(tmp_path), resumed, progress, DistContext(0, workers, CPU))
    assert resumed.micro_batches.count == count
    if workers == 1:
        for each in (learner, resumed):
            each.learn(FOUR_IMAGES, FOUR_TARGETS, must_update=True)
        assert equal(weights(learner), weights(resumed))

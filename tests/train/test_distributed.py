"""The distributed replica of a network, in a process group of one worker."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tiny_batch import IMAGES, TARGETS, equal, weights
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner

pytestmark = pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view strides")


@pytest.fixture
def distribute(tmp_path: Path) -> Iterator:
    """Return a function that gives a learner a distributed replica."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

    def wrap(learner: Learner) -> Learner:
        learner.replica = DistContext(0, 2, torch.device("cpu")).wrap(learner.network)
        return learner

    yield wrap
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replica_accumulates_and_clips_as_the_network_alone(make_learner, distribute, monkeypatch, dtype):
    monkeypatch.setattr("yolor_ray.train.precision.compute_dtype", lambda device: dtype)
    alone, distributed = make_learner(nominal_batch=6, lr=0.1), distribute(make_learner(nominal_batch=6, lr=0.1))
    for step in range(8):
        for learner in (alone, distributed):
            learner.learn(IMAGES if step % 2 else IMAGES.flip(1), TARGETS, must_update=step == 4)
        assert equal(weights(alone), weights(distributed))
    assert alone.average.updates == distributed.average.updates == 3


def test_gradients_are_parts_of_the_buffers_that_are_sent(make_learner, distribute, monkeypatch):
    learner = distribute(make_learner(nominal_batch=4))
    clip, buffers = learner.clipper.clip, []

    def clip_seen(parameters):
        parameters = list(parameters)
        buffers.append({parameter.grad.untyped_storage().data_ptr() for parameter in parameters})
        return clip(parameters)

    monkeypatch.setattr(learner.clipper, "clip", clip_seen)
    for _ in range(4):
        learner.learn(IMAGES, TARGETS, must_update=False)
    assert [len(each) for each in buffers] == [1, 1]
    assert len(list(learner.network.parameters())) > 1

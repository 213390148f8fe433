"""Precision of training: the number format by device, and the scale of the loss in float16."""

import contextlib
import logging

import numpy as np
import pytest
import torch

from tiny_batch import IMAGES, INFINITE_LOSS, TARGETS, equal, weights
from yolor_ray.errors import NonFiniteLossError
from yolor_ray.train.checkpoint.checkpoint import Progress, resume, take_checkpoint, write_checkpoint
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner
from yolor_ray.train.optim.finite_check import MAX_BAD_UPDATES
from yolor_ray.train.precision import compute_dtype, converted_weights, make_scaler, update_scale, weight_groups

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def float16(monkeypatch):
    """Let the CPU compute in float16, as a GPU without bfloat16 units does."""
    monkeypatch.setattr("yolor_ray.train.precision.compute_dtype", lambda device: torch.float16)


def learn(learner: Learner, updates: int) -> None:
    for _ in range(updates):
        learner.learn(IMAGES, TARGETS, must_update=True)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_that_only_emulates_bfloat16_computes_in_float16(monkeypatch, native, dtype):
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert compute_dtype(CUDA) is dtype


@pytest.mark.parametrize(("capabilities", "dtype"), [({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)])
def test_a_cpu_computes_in_bfloat16_or_float32_without_a_scale(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert compute_dtype(CPU) is dtype
    assert not make_scaler(CPU).is_enabled()


def test_float16_computes_the_features_in_float16_and_the_loss_in_float32(make_learner, float16):
    learner = make_learner()
    dtypes = []
    learner.network.backbone.register_forward_hook(lambda _, __, features: dtypes.append(features[-1].dtype))
    terms = learner.learn(IMAGES, TARGETS, must_update=True)
    assert dtypes == [torch.float16]
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert {parameter.dtype for parameter in learner.network.parameters()} == {torch.float32}


def test_a_step_in_float16_moves_the_weights_about_as_far_as_in_float32(make_learner, monkeypatch):
    moves = []
    for dtype in (torch.float32, torch.float16):
        monkeypatch.setattr("yolor_ray.train.precision.compute_dtype", lambda device, dtype=dtype: dtype)
        learner = make_learner()
        if dtype is torch.float16:
            # The first scale of a run is often too large.
            learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**8})
        before = weights(learner)
        learn(learner, 1)
        moves.append(torch.cat([(b - a).flatten() for a, b in zip(before, weights(learner), strict=True)]))
    # Processors round half precision differently, by about 1 %; a loss scale that is not divided out is a factor of 256.
    torch.testing.assert_close(moves[1].norm(), moves[0].norm(), rtol=0.05, atol=0)
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.99


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_converted_together_learn_as_those_converted_one_by_one(make_learner, monkeypatch, dtype, recompute):
    monkeypatch.setattr("yolor_ray.train.precision.compute_dtype", lambda device: dtype)
    learned = []
    for together in (True, False):
        if not together:
            monkeypatch.setattr("yolor_ray.train.learner.converted_weights", lambda groups, device: contextlib.nullcontext())
        learner = make_learner()
        learner.network.backbone.recompute = learner.network.neck.recompute = recompute
        learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**8} if dtype is torch.float16 else {})
        learn(learner, 3)
        learned.append(weights(learner))
    assert equal(*learned) and not equal(learned[0], weights(make_learner()))


def test_a_failed_forward_pass_leaves_the_weights_to_the_layers(make_learner, float16):
    network = make_learner().network
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    with pytest.raises(MemoryError), converted_weights(weight_groups(network), CPU):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
        assert {layer.weight.dtype for layer in layers} == {torch.float16}
        raise MemoryError
    assert all(isinstance(layer.weight, torch.nn.Parameter) for layer in layers)


def test_the_scale_changes_no_step(make_learner, float16):
    scaled = []
    for scale in (2.0**4, 2.0**12):
        learner = make_learner(clip_ratio=0.0)
        learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": scale})
        before = weights(learner)
        learn(learner, 1)
        scaled.append(torch.cat([(b - a).flatten() for a, b in zip(before, weights(learner), strict=True)]))
    torch.testing.assert_close(scaled[1], scaled[0], rtol=0.02, atol=1e-4)


def test_a_scale_that_is_too_large_is_lowered_and_the_update_is_not_counted(make_learner, float16, caplog):
    learner = make_learner()
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**30})
    before = weights(learner)
    with caplog.at_level(logging.INFO):
        learn(learner, 1)
    assert equal(before, weights(learner))
    assert "event=gradient_not_finite step=1 in_a_row=0 updates=1 scale=5.36871e+08" in caplog.text
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**10})
    learn(learner, 1)
    assert not equal(before, weights(learner))


def test_an_endless_series_of_non_finite_gradients_ends_the_run_in_float16_too(make_learner, float16):
    learner = make_learner(loss=INFINITE_LOSS)
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**3})
    with pytest.raises(NonFiniteLossError, match=f"{MAX_BAD_UPDATES} updates in a row"):
        learn(learner, 100)
    assert learner.step == 3 + MAX_BAD_UPDATES


def test_a_scale_that_stays_is_not_the_cause(float16):
    scaler = make_scaler(CPU)
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scaler.scale(parameter.sum()).backward()
    scaler.unscale_(optimizer)
    assert not update_scale(scaler, CPU), "all gradients are finite, as where only their norm overflows"


def test_a_run_resumes_with_the_scale_of_its_checkpoint(make_learner, float16, tmp_path):
    learner, resumed = make_learner(), make_learner()
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**30})
    learn(learner, 3)
    progress = Progress("digest", seen=np.zeros(4, bool))
    write_checkpoint(str(tmp_path), take_checkpoint(learner, progress), 1)
    resume(str(tmp_path), resumed, progress, DistContext(0, 1, CPU))
    assert resumed.scaler.state_dict() == learner.scaler.state_dict()
    for each in (learner, resumed):
        learn(each, 1)
    assert equal(weights(learner), weights(resumed))


def test_a_checkpoint_in_float32_resumes_in_float16_with_a_fresh_scale(make_learner, monkeypatch, tmp_path):
    progress = Progress("digest", seen=np.zeros(4, bool))
    write_checkpoint(str(tmp_path), take_checkpoint(make_learner(), progress), 1)
    monkeypatch.setattr("yolor_ray.train.precision.compute_dtype", lambda device: torch.float16)
    resumed = make_learner()
    resume(str(tmp_path), resumed, progress, DistContext(0, 1, CPU))
    assert resumed.scaler.state_dict() == make_learner().scaler.state_dict()

"""Operations of a training step: those that launch kernels on a GPU by the part of the step, and those that wait for the device."""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from one_graph import make_batch, make_learner
from yolor_ray.train import learner as learner_module
from yolor_ray.train.learner import Learner
from yolor_ray.train.losses.assign import Targets

NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh", "detach"}
"""Operations without a kernel beside views."""
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "repeat_interleave"}
"""Operations whose result or whose shape the host reads from the device."""
TENSORS_PER_KERNEL = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
"""Tensors that a kernel over lists takes, by the number of lists (`depth_to_max_tensors` in torch's MultiTensorApply.cuh)."""


class CopiesToHost(TorchFunctionMode):
    """Note the methods that copy a tensor to the host, which on a CPU dispatch nothing."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, function: Any, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in (Tensor.tolist, Tensor.numpy, Tensor.cpu):
            self._waits.append(function.__name__)
        return function(*args, **(kwargs or {}))


class StepOperations(TorchDispatchMode):
    """Counts of the dispatched operations, each as one kernel except lists of tensors and the gradients of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.part = "other"
        self.kernels: Counter[str] = Counter()
        self.waits: list[str] = []
        self._copies = CopiesToHost(self.waits)

    def __enter__(self) -> "StepOperations":
        self._copies.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._copies.__exit__(*error)

    def __torch_dispatch__(self, function: Any, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        if name in WAITS or _has_mask(name, args):
            self.waits.append(f"{self.part}: {name}")
        if function.namespace == "aten" and not function.is_view and name not in NO_KERNEL | WAITS:
            self.kernels[self.part] += _kernels(name, args)
        return function(*args, **(kwargs or {}))


def _has_mask(name: str, args: tuple) -> bool:
    """Return True for an index by a mask, whose number of results depends on the numbers of the mask."""
    indices = args[1] if name in ("index", "index_put", "index_put_") else ()
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _kernels(name: str, args: tuple) -> int:
    if name == "convolution_backward":
        return sum(args[-1])
    if not name.startswith(("_foreach_", "_fused_")):
        return 1
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
    return -(-len(lists[0]) // TENSORS_PER_KERNEL[len(lists)])


def operations_of_preset(preset: str) -> StepOperations:
    """Return the operations of the second step of a preset in bfloat16, as GPUs compute: the conversions are kernels too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolor_ray.train.precision.compute_dtype", lambda _: torch.bfloat16)
        learner, batch = make_learner(preset), make_batch()
        learner.learn(*batch, must_update=False)
        return operations_of_step(learner, *batch, patch)


def operations_of_step(learner: Learner, images: Tensor, targets: Targets, monkeypatch: pytest.MonkeyPatch) -> StepOperations:
    """Take a step without the end of an epoch, and return its operations by part of the step."""
    counts = StepOperations()

    def in_part(part: str, function: Callable[..., Any], then: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            counts.part = part
            result = function(*args, **kwargs)
            counts.part = then
            return result

        return run

    def forward(pixels: Tensor) -> dict[str, list[Tensor]]:
        raw = network(pixels)
        # The backward pass of the network begins when the last output has its gradient.
        outputs = [output for levels in raw.values() for output in levels]
        torch.autograd.graph.register_multi_grad_hook(outputs, lambda _: setattr(counts, "part", "backward of network"))
        return raw

    network = learner.replica
    monkeypatch.setattr(learner, "replica", in_part("forward", forward, "loss"))
    monkeypatch.setattr(learner_module, "to_input", in_part("input", learner_module.to_input, "forward"))
    monkeypatch.setattr(learner_module, "loss_terms", in_part("loss", learner_module.loss_terms, "backward of loss"))
    if learner.balance:
        monkeypatch.setattr(learner.balance, "balance", in_part("balance", learner.balance.balance, "backward of loss"))
    monkeypatch.setattr(learner.clipper, "clip", in_part("clip", learner.clipper.clip, "optimizer"))
    monkeypatch.setattr(learner.finite_check, "add", in_part("finite check", learner.finite_check.add, "other"))
    monkeypatch.setattr(learner.average, "update", in_part("average", learner.average.update, "other"))
    with counts:
        learner.learn(images, targets, must_update=False)
    return counts


if __name__ == "__main__":
    for name in sys.argv[1:]:
        kernels = operations_of_preset(name).kernels
        sys.stdout.write(f"{name}: {kernels.total()} kernels, {dict(kernels)}\n")

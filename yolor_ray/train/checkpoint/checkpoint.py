"""Write crash-safe checkpoints; load the newest complete one.

A checkpoint is a published folder `checkpoints/STEP-ATTEMPT`: tensors first, then state, then the manifest. Data order and
augmentation are functions of seed, epoch and record, so the counters in the state replace the states of random generators.
"""

import contextlib
import dataclasses
import json
import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from yolor_ray.config.renamed import current_metrics
from yolor_ray.data.loading import epoch_ledger
from yolor_ray.errors import IntegrityError, NotFoundError, StorageError, WeightsError
from yolor_ray.io import manifest, storage
from yolor_ray.train.checkpoint.content import parse_state, parse_tensors
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner

logger = logging.getLogger(__name__)

TENSORS_FILE, STATE_FILE = "trainer.safetensors", "state.json"
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds checkpoints."""
BEST = "best"
"""Folder of a run that holds the best weights so far, by epoch and attempt."""
KEPT_CHECKPOINTS = 2
"""Complete checkpoints that stay; the second replaces a damaged newest one."""


@dataclass
class Progress:
    """Position of a run."""

    digest: str
    """Digest of the training set; a run cannot change it."""
    epoch: int = 0
    """Finished epochs, which is the current epoch counted from 0."""
    seen: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """(images,) bool: records of the current epoch that were trained on."""
    best_fitness: float = -1.0
    """Best `fitness` on the validation set so far: the mean of the tasks' main metrics, for boxes alone AP."""
    best: str = ""
    """Folder of the best weights inside the run's folder."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Metrics of each finished epoch."""


@dataclass(frozen=True)
class Checkpoint:
    """Complete state that a run resumes from."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Batches taken in the run."""
        return self.state["step"]


def take_checkpoint(learner: Learner, progress: Progress) -> Checkpoint:
    """Copy the state of a run; the learner must have no accumulated gradients, which a checkpoint does not hold."""
    state = {**dataclasses.asdict(progress), "seen": epoch_ledger.to_json(progress.seen)}
    state |= {"step": learner.step, "updates": learner.average.updates, "mean_norm": learner.clipper.mean_norm.item()}
    state |= {"task_norms": learner.balance.norms if learner.balance else {}}
    state |= {"scaler": learner.scaler.state_dict(), "micro_batches": learner.micro_batches.count}
    return Checkpoint(_tensors(learner), state)


def _tensors(learner: Learner) -> dict[str, Tensor]:
    """Return copies of the tensors of network, weight average and optimizer, on the CPU, by `SECTION/NAME`."""
    states = {name: learner.optimizer.state[parameter] for name, parameter in learner.network.named_parameters()}
    optimizer = {f"{key}/{name}": tensor for name, state in states.items() for key, tensor in state.items() if tensor is not None}
    sections = {"network": learner.network.state_dict(), "average": learner.average.network.state_dict(), "optimizer": optimizer}
    return {
        f"{section}/{name}": tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for section, tensors in sections.items()
        for name, tensor in tensors.items()
    }


def write_checkpoint(run: str, checkpoint: Checkpoint, attempt: int) -> None:
    """Publish a checkpoint; after a failure, delete its files."""
    url = storage.join(run, CHECKPOINTS, f"{checkpoint.step:09d}-{attempt:04d}")
    files = {TENSORS_FILE: safetensors.torch.save(checkpoint.tensors), STATE_FILE: json.dumps(checkpoint.state).encode()}
    try:
        manifest.publish(url, files)
    except StorageError:
        # On a full disk, the files of a failed checkpoint take the space that the next checkpoint needs.
        with contextlib.suppress(StorageError):
            storage.delete(url)
        raise


def complete_checkpoints(run: str) -> list[str]:
    """Return the names of the complete checkpoints of a run, the newest last."""
    return _select_complete(run, _list_checkpoints(run))


def _list_checkpoints(run: str) -> list[str]:
    """Return the names of all checkpoints of a run, the newest last.

    A later attempt may be at an earlier step, because it found the newest checkpoint damaged. Numbers have fixed widths, so that their
    alphabetical order is the order of the numbers.
    """
    return sorted(storage.list_names(storage.join(run, CHECKPOINTS)), key=lambda name: name.partition("-")[::-1])


def _select_complete(run: str, names: list[str]) -> list[str]:
    return [name for name in names if manifest.is_published(storage.join(run, CHECKPOINTS, name))]


def prune_checkpoints(run: str, attempt: int) -> None:
    """Delete all but the newest complete checkpoints, and the best weights that no kept checkpoint references.

    Checkpoints of later attempts stay: the caller may be a partitioned attempt, and a later attempt may be writing them.
    """
    names = _list_checkpoints(run)
    kept = _select_complete(run, names)[-KEPT_CHECKPOINTS:]
    for name in names:
        if name not in kept and name.partition("-")[2] <= f"{attempt:04d}":
            storage.delete(storage.join(run, CHECKPOINTS, name))
    bests = storage.list_names(storage.join(run, BEST))
    if kept and len(bests) > 1:
        _prune_best_weights(run, kept, bests)


def _prune_best_weights(run: str, kept: list[str], bests: list[str]) -> None:
    """Delete best-weight folders older than every one referenced by the kept checkpoints; newer ones may not be referenced yet.

    A damaged checkpoint, which no run resumes from, references none.
    """
    referenced = []
    for name in kept:
        url = storage.join(run, CHECKPOINTS, name)
        try:
            referenced.append(_read_state(url, manifest.read_published(url, (STATE_FILE,)))["best"])
        except IntegrityError as error:
            logger.warning("event=checkpoint_damaged url=%s error='%s'", url, error)
    for name in bests:
        best = f"{BEST}/{name}"
        if referenced and best < min(referenced):
            storage.delete(storage.join(run, best))


def newest_checkpoint(run: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and state of the newest complete checkpoint, or None; unfinished and damaged ones are skipped with a warning.

    Raises:
        IntegrityError: all complete checkpoints are damaged; a run that began anew would hide the loss.

    """
    newest = _read_newest(run)
    return None if newest is None else (newest[1].tensors, newest[1].state)


def _read_newest(run: str) -> tuple[str, Checkpoint] | None:
    """Return the URL of the newest complete checkpoint, and the checkpoint."""
    folder = storage.join(run, CHECKPOINTS)
    damages = []
    for name in reversed(_list_checkpoints(run)):
        url = storage.join(folder, name)
        if not manifest.is_published(url):
            logger.warning("event=checkpoint_unfinished url=%s", url)
            continue
        try:
            return url, _read(url)
        except IntegrityError as error:
            logger.warning("event=checkpoint_damaged url=%s error='%s' next='the checkpoint before it is taken'", url, error)
            damages.append(str(error))
    if damages:
        found = f"found no whole checkpoint among {len(damages)}: {'; '.join(damages)}"
        raise IntegrityError(f"{folder}: {found}; restore one, or delete the folder to train from the start")
    return None


def _read(url: str) -> Checkpoint:
    files = manifest.read_published(url, (TENSORS_FILE, STATE_FILE))
    return Checkpoint(parse_tensors(storage.join(url, TENSORS_FILE), files[TENSORS_FILE]), _read_state(url, files))


def _read_state(url: str, files: dict[str, bytes]) -> dict[str, Any]:
    return parse_state(storage.join(url, STATE_FILE), files[STATE_FILE])


def resume(run: str, learner: Learner, progress: Progress, dist_context: DistContext) -> Progress:
    """Load the newest checkpoint into every worker's learner and return its progress; without a checkpoint, return `progress`.

    Rank 0 chooses the checkpoint, so that all workers resume from the same one.

    Raises:
        WeightsError: the checkpoint belongs to another network or training set.
        IntegrityError: all complete checkpoints are damaged, or the best weights that the checkpoint names.

    """
    newest = _read_newest(run) if dist_context.is_rank_zero else None
    if newest:
        _check_best_weights(run, newest[1].state)
    url = dist_context.gather(newest[0] if newest else "")[0]
    if not url:
        return progress
    checkpoint = newest[1] if newest else _read(url)
    state = checkpoint.state
    if state["digest"] != progress.digest:
        raise WeightsError(
            f"{run}: its checkpoint was trained on dataset {state['digest'][:12]}, found {progress.digest[:12]}; use a new run.name"
        )
    seen = epoch_ledger.from_json(state["seen"])
    if len(seen) != len(progress.seen):
        raise WeightsError(
            f"{run}: its checkpoint counts {len(seen)} records, found {len(progress.seen)} in the dataset; use a new run.name"
        )
    _restore(run, learner, checkpoint.tensors)
    learner.step, learner.average.updates = state["step"], state["updates"]
    # Checkpoints of older versions have no mean norm.
    learner.clipper.mean_norm.fill_(state.get("mean_norm", 0.0))
    # Checkpoints of older versions have no norms of tasks: they are measured anew.
    if learner.balance:
        learner.balance.norms = state.get("task_norms", {})
    # With several workers each has a smaller batch, and all need the same number of forward passes.
    if dist_context.world_size == 1:
        learner.micro_batches.count = state.get("micro_batches", 1)
    # Only an attempt that computed in float16 has written the state of a scaler.
    if state.get("scaler"):
        learner.scaler.load_state_dict(state["scaler"])
    logger.info("event=resume step=%d epoch=%d", learner.step, state["epoch"])
    fields = {field.name: state[field.name] for field in dataclasses.fields(Progress)}
    fields |= {"seen": seen, "rows": [current_metrics(row) for row in state["rows"]]}
    return Progress(**fields)


def _check_best_weights(run: str, state: dict[str, Any]) -> None:
    """Verify the best weights of a checkpoint, which are read again only at the end of the run; without their folder there are none."""
    best = storage.join(run, state["best"])
    if not state["best"]:
        return
    if not storage.list_names(best):
        logger.warning("event=best_weights_gone url=%s next='the best of the following validations is published'", best)
        state |= {"best": "", "best_fitness": Progress.best_fitness}
        return
    try:
        manifest.read_published(best)
    except (IntegrityError, NotFoundError) as error:
        advice = "restore the file, or delete the folder to publish the best weights of the following validations instead"
        raise IntegrityError(f"{best}: the best weights so far are damaged: {error}; {advice}") from error


@torch.no_grad()
def _restore(run: str, learner: Learner, tensors: dict[str, Tensor]) -> None:
    sections: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
    for key, tensor in tensors.items():
        section, _, name = key.partition("/")
        # Checkpoints of version 0.2 hold no other state of the optimizer than SGD's momentum.
        section, name = ("optimizer", f"momentum_buffer/{name}") if section == "momentum" else (section, name)
        sections[section][name] = tensor
    try:
        learner.network.load_state_dict(sections["network"])
        learner.average.network.load_state_dict(sections["average"])
    except RuntimeError as error:
        raise WeightsError(f"{run}: its checkpoint does not fit this network: {error}") from error
    parameters = dict(learner.network.named_parameters())
    for key, tensor in sections["optimizer"].items():
        state, _, name = key.partition("/")
        parameter = parameters.get(name)
        if parameter is None or tensor.shape not in ((), parameter.shape):
            shape = tuple(tensor.shape)
            raise WeightsError(f"{run}: its checkpoint does not fit this network: found the optimizer's {key!r} of shape {shape}")
        # A fused optimizer reads parameter and state in the same memory layout.
        restored = tensor.to(parameter.device) if tensor.dim() == 0 else torch.empty_like(parameter).copy_(tensor)
        learner.optimizer.state[parameter][state] = restored

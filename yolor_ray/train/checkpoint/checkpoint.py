"""Take checkpoints that a killed writer cannot spoil, and read the newest whole one.

A checkpoint is a published folder `checkpoints/STEP-LIFE`: tensors, then state, then the manifest. Data order and
augmentation are functions of seed, epoch and record, so the counters in the state stand for every random generator.
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

from yolor_ray.data.loading import epoch_ledger
from yolor_ray.errors import IntegrityError, StorageError, WeightsError
from yolor_ray.io import manifest, storage
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner

logger = logging.getLogger(__name__)

TENSORS_FILE, STATE_FILE = "trainer.safetensors", "state.json"
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds them."""
BEST = "best"
"""Folder of a run that holds the best weights so far, by epoch."""
KEPT = 2
"""Whole checkpoints that stay; the one before the newest is there in case the newest is damaged."""


@dataclass
class Progress:
    """Say how far a run has come."""

    digest: str
    """Digest of the training set; another data set is another run."""
    epoch: int = 0
    """Epoch under way, from 0."""
    seen: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """(images,) bool: records of this epoch that were learned from."""
    best_fitness: float = -1.0
    """Best mean of the tasks' main numbers on the validation set so far: for boxes alone AP."""
    best: str = ""
    """Folder of the best weights inside the run."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One row of metrics per finished epoch."""


@dataclass(frozen=True)
class Checkpoint:
    """Hold all that a run goes on from."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Batches taken in the run."""
        return self.state["step"]


def take_checkpoint(learner: Learner, progress: Progress) -> Checkpoint:
    """Return a copy of this moment, which training leaves alone; the learner must have no gathered gradients."""
    state = {**dataclasses.asdict(progress), "seen": epoch_ledger.to_json(progress.seen)}
    state |= {"step": learner.step, "updates": learner.average.updates}
    return Checkpoint(_tensors(learner), state)


def _tensors(learner: Learner) -> dict[str, Tensor]:
    """Return copies of network, weight average and momentum by name."""
    states = {name: learner.optimizer.state[parameter] for name, parameter in learner.network.named_parameters()}
    momentum = {name: s["momentum_buffer"] for name, s in states.items() if s.get("momentum_buffer") is not None}
    parts = {"network": learner.network.state_dict(), "average": learner.average.network.state_dict(), "momentum": momentum}
    return {
        f"{part}/{name}": t.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for part, tensors in parts.items()
        for name, t in tensors.items()
    }


def write_checkpoint(run: str, checkpoint: Checkpoint, life: int) -> None:
    """Publish a checkpoint; if it cannot be written whole, nothing of it stays."""
    place = storage.join(run, CHECKPOINTS, f"{checkpoint.step:09d}-{life:04d}")
    files = {TENSORS_FILE: safetensors.torch.save(checkpoint.tensors), STATE_FILE: json.dumps(checkpoint.state).encode()}
    try:
        manifest.publish(place, files)
    except StorageError:
        # What is there of it takes room that the next try may need.
        with contextlib.suppress(StorageError):
            storage.delete(place)
        raise


def complete_checkpoints(run: str) -> list[str]:
    """Return the names of the published checkpoints of a run, the newest last."""
    return _is_complete(run, storage.list_names(storage.join(run, CHECKPOINTS)))


def _is_complete(run: str, names: list[str]) -> list[str]:
    return [name for name in names if manifest.is_published(storage.join(run, CHECKPOINTS, name))]


def prune_checkpoints(run: str, life: int) -> None:
    """Drop what no longer serves: all but the newest whole checkpoints, and best weights that none names.

    What a later life is writing stays: whoever drops may have been cut off. Names have fixed widths, so that they compare as numbers do.
    """
    names = storage.list_names(storage.join(run, CHECKPOINTS))
    kept = _is_complete(run, names)[-KEPT:]
    for name in names:
        if name not in kept and name.partition("-")[2] <= f"{life:04d}":
            storage.delete(storage.join(run, CHECKPOINTS, name))
    bests = storage.list_names(storage.join(run, BEST))
    if kept and len(bests) > 1:
        _prune_best_weights(run, kept, bests)


def _prune_best_weights(run: str, kept: list[str], bests: list[str]) -> None:
    """Delete best weights that are older than all which the kept checkpoints name; newer ones are still to be named."""
    states = (storage.read_bytes(storage.join(run, CHECKPOINTS, name, STATE_FILE)) for name in kept)
    named = {json.loads(state)["best"] for state in states}
    for name in bests:
        best = f"{BEST}/{name}"
        if best < min(named):
            storage.delete(storage.join(run, best))


def newest_checkpoint(run: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and state of the newest whole checkpoint, or None; unfinished and damaged ones are passed over, loudly."""
    found = _newest(run)
    return None if found is None else (found[1].tensors, found[1].state)


def _newest(run: str) -> tuple[str, Checkpoint] | None:
    """Return the newest whole checkpoint and its URL."""
    folder = storage.join(run, CHECKPOINTS)
    for name in reversed(storage.list_names(folder)):
        url = storage.join(folder, name)
        if not manifest.is_published(url):
            logger.warning("event=checkpoint_unfinished url=%s", url)
            continue
        try:
            return url, _read(url)
        except IntegrityError as error:
            logger.warning("event=checkpoint_damaged url=%s error=%s", url, error)
    return None


def _read(url: str) -> Checkpoint:
    files = manifest.read_published(url, (TENSORS_FILE, STATE_FILE))
    return Checkpoint(safetensors.torch.load(files[TENSORS_FILE]), json.loads(files[STATE_FILE]))


def resume(run: str, learner: Learner, progress: Progress, dist_context: DistContext) -> Progress:
    """Load the newest checkpoint into every worker's learner and return its progress; without one, return `progress` as it is.

    The leading worker chooses, so that all go on from the same one.

    Raises:
        WeightsError: the checkpoint belongs to another network or training set.

    """
    found = _newest(run) if dist_context.is_rank_zero else None
    url = dist_context.gather(found[0] if found else "")[0]
    if not url:
        return progress
    checkpoint = found[1] if found else _read(url)
    state = checkpoint.state
    if state["digest"] != progress.digest:
        raise WeightsError(
            f"{run}: its checkpoint was trained on data set {state['digest'][:12]}, found {progress.digest[:12]}; use a new run.name"
        )
    _restore(run, learner, checkpoint.tensors)
    learner.step, learner.average.updates = state["step"], state["updates"]
    fields = {f.name: state[f.name] for f in dataclasses.fields(Progress)}
    logger.info("event=resume step=%d epoch=%d", learner.step, state["epoch"])
    return Progress(**{**fields, "seen": epoch_ledger.from_json(state["seen"])})


@torch.no_grad()
def _restore(run: str, learner: Learner, tensors: dict[str, Tensor]) -> None:
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "momentum": {}}
    for name, tensor in tensors.items():
        part, _, inner = name.partition("/")
        parts[part][inner] = tensor
    try:
        learner.network.load_state_dict(parts["network"])
        learner.average.network.load_state_dict(parts["average"])
    except RuntimeError as error:
        raise WeightsError(f"{run}: its checkpoint does not fit this network: {error}") from error
    for name, parameter in learner.network.named_parameters():
        if name in parts["momentum"]:
            learner.optimizer.state[parameter]["momentum_buffer"] = parts["momentum"][name].to(parameter.device)

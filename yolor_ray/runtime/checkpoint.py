"""Write checkpoints that a killed writer cannot spoil, and read the newest whole one.

A checkpoint is a published folder `checkpoints/STEP`: tensors, then state, then the manifest. Data order and augmentation
are functions of seed, epoch and record, so the counters in the state stand for every random generator.
"""

import base64
import dataclasses
import json
import logging
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from yolor_ray import storage
from yolor_ray.config import Run
from yolor_ray.errors import StorageError, WeightsError
from yolor_ray.learn.step import Learner

logger = logging.getLogger(__name__)

TENSORS_FILE, STATE_FILE = "trainer.safetensors", "state.json"
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds them."""
KEPT = 2
"""Checkpoints that stay; the one before the newest is there in case the newest is damaged."""


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


def _tensors(learner: Learner) -> dict[str, Tensor]:
    """Return network, weight average and momentum by name."""
    states = {name: learner.optimizer.state[parameter] for name, parameter in learner.network.named_parameters()}
    momentum = {name: s["momentum_buffer"] for name, s in states.items() if s.get("momentum_buffer") is not None}
    parts = {"network": learner.network.state_dict(), "average": learner.average.network.state_dict(), "momentum": momentum}
    return {f"{part}/{name}": t.detach().cpu().contiguous() for part, tensors in parts.items() for name, t in tensors.items()}


def write_checkpoint(run: str, learner: Learner, progress: Progress) -> None:
    """Publish a checkpoint of this moment and drop the oldest; the learner must have no gathered gradients."""
    packed = base64.b64encode(np.packbits(progress.seen).tobytes()).decode()
    state = {**dataclasses.asdict(progress), "seen": packed, "records": len(progress.seen)}
    state |= {"step": learner.step, "updates": learner.average.updates}
    folder = storage.join(run, CHECKPOINTS)
    files = {TENSORS_FILE: safetensors.torch.save(_tensors(learner)), STATE_FILE: json.dumps(state).encode()}
    storage.publish(storage.join(folder, f"{learner.step:09d}"), files)
    for old in storage.list_names(folder)[:-KEPT]:
        storage.delete(storage.join(folder, old))
    logger.info("event=checkpoint step=%d epoch=%d", learner.step, progress.epoch)


def newest_checkpoint(run: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and state of the newest whole checkpoint, or None; unfinished and damaged ones are passed over, loudly."""
    folder = storage.join(run, CHECKPOINTS)
    for name in reversed(storage.list_names(folder)):
        url = storage.join(folder, name)
        if not storage.is_published(url):
            logger.warning("event=checkpoint_unfinished url=%s", url)
            continue
        try:
            files = storage.read_published(url, (TENSORS_FILE, STATE_FILE))
        except StorageError as error:
            logger.warning("event=checkpoint_damaged url=%s error=%s", url, error)
            continue
        return safetensors.torch.load(files[TENSORS_FILE]), json.loads(files[STATE_FILE])
    return None


@torch.no_grad()
def resume(run: str, learner: Learner, progress: Progress) -> Progress:
    """Load the newest checkpoint into the learner and return its progress; without one, return `progress` as it is.

    Raises WeightsError when the checkpoint belongs to another network or training set.
    """
    found = newest_checkpoint(run)
    if found is None:
        return progress
    tensors, state = found
    if state["digest"] != progress.digest:
        raise WeightsError(
            f"{run}: its checkpoint was trained on data set {state['digest'][:12]}, found {progress.digest[:12]}; use a new run.name"
        )
    _restore(run, learner, tensors)
    learner.step, learner.average.updates = state["step"], state["updates"]
    seen = np.unpackbits(np.frombuffer(base64.b64decode(state["seen"]), np.uint8), count=state["records"]).astype(bool)
    fields = {f.name: state[f.name] for f in dataclasses.fields(Progress)}
    logger.info("event=resume step=%d epoch=%d", learner.step, state["epoch"])
    return Progress(**{**fields, "seen": seen})


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


class Saver:
    """Know when a checkpoint is due, and write it."""

    def __init__(self, run: str, config: Run, epochs: int) -> None:
        self._run, self._config, self._epochs = run, config, epochs
        self._last = time.monotonic()

    @property
    def overdue(self) -> bool:
        """Tell whether the longest time without a checkpoint is over."""
        return time.monotonic() - self._last > self._config.checkpoint_minutes * 60

    def save(self, learner: Learner, progress: Progress) -> None:
        """Write a checkpoint of this moment."""
        write_checkpoint(self._run, learner, progress)
        self._last = time.monotonic()

    def epoch_done(self, learner: Learner, progress: Progress) -> None:
        """Write a checkpoint if one is due after this epoch."""
        if self.overdue or progress.epoch % self._config.checkpoint_every == 0 or progress.epoch == self._epochs:
            self.save(learner, progress)

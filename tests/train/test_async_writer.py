"""Checkpoints beside training: when they are due, what a failure does, and that best weights outlive those who name them."""

import dataclasses
import errno
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from yolor_ray.config import NetworkConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.errors import StorageError, SupersededError
from yolor_ray.io import manifest, storage
from yolor_ray.model.network import Yolor
from yolor_ray.train.checkpoint import checkpoint
from yolor_ray.train.checkpoint.async_writer import AsyncCheckpointer
from yolor_ray.train.checkpoint.attempts import RunAttempt
from yolor_ray.train.checkpoint.checkpoint import Progress, newest_checkpoint
from yolor_ray.train.learner import Learner
from yolor_ray.train.optim import Schedule

CONFIG = TrainConfig(
    network=NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1),
    optim=OptimConfig(epochs=9),
)


@pytest.fixture(scope="module")
def learner() -> Learner:
    torch.manual_seed(0)
    network = Yolor(CONFIG.network, 2, torch.full((3, 3, 2), 10.0))
    return Learner(network, CONFIG, Schedule(CONFIG.optim, 10), network)


def progress(epoch: int = 0, best: str = "") -> Progress:
    return Progress("digest", epoch=epoch, seen=np.array([True, False, True]), best=best)


def saver(folder: Path, **run: object) -> AsyncCheckpointer:
    return AsyncCheckpointer(str(folder), RunConfig(**run), CONFIG.optim.epochs, RunAttempt(str(folder), 1, ""), step=0)


def test_a_checkpoint_is_due_after_so_many_steps_or_so_long(tmp_path: Path) -> None:
    by_steps = saver(tmp_path, checkpoint_steps=5, checkpoint_minutes=60)
    assert [step for step in range(8) if by_steps.due(step)] == [5, 6, 7]
    assert saver(tmp_path, checkpoint_minutes=0).due(1)
    assert not saver(tmp_path, checkpoint_minutes=60).due(10**6)


def test_what_is_saved_is_the_moment_it_was_asked_for(tmp_path: Path, learner: Learner) -> None:
    one = saver(tmp_path)
    weight = next(iter(learner.network.parameters()))
    before = weight.detach().clone()
    one.save(learner, progress())
    with torch.no_grad():
        weight += 1
    one.close()
    tensors, state = newest_checkpoint(str(tmp_path))
    name = next(name for name, _ in learner.network.named_parameters())
    assert torch.equal(tensors[f"network/{name}"], before)
    assert state["seen"]["records"] == 3
    assert storage.list_names(str(tmp_path / "checkpoints")) == ["000000000-0001"]


def test_an_epoch_that_ends_while_a_slow_disk_writes_does_not_wait(tmp_path: Path, learner: Learner, monkeypatch) -> None:
    one, slow, write = saver(tmp_path, checkpoint_epochs=2, checkpoint_minutes=60), threading.Event(), storage.write_bytes
    later = dataclasses.replace(learner)

    def write_slowly(url: str, data: bytes) -> None:
        assert slow.wait(10)
        write(url, data)

    monkeypatch.setattr(storage, "write_bytes", write_slowly)
    one.save(learner, progress())
    later.step = 5
    one.epoch_done(later, progress(epoch=2))
    assert not one.due(6)
    slow.set()
    while one._writing and not one.due(6):
        pass
    one.save(later, progress(epoch=2))
    one.close()
    assert newest_checkpoint(str(tmp_path))[1]["step"] == 5
    assert not one.due(6), "it was owed once"


def test_a_full_disk_is_told_and_training_goes_on_with_the_last_good_checkpoint(
    tmp_path: Path, learner: Learner, monkeypatch, caplog
) -> None:
    one = saver(tmp_path, checkpoint_minutes=0)
    one.finish(learner, progress())
    write = storage.write_bytes

    def full(url: str, data: bytes) -> None:
        if url.endswith(checkpoint.STATE_FILE):
            raise StorageError(f"{url}: cannot write it: {OSError(errno.ENOSPC, 'No space left on device')}")
        write(url, data)

    later = dataclasses.replace(learner)
    later.step = 7
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", full)
        one.save(later, progress())
        while one._writing and not one.due(7):
            pass
        assert "event=checkpoint_failed step=7" in caplog.text and "No space left on device" in caplog.text
        assert newest_checkpoint(str(tmp_path))[1]["step"] == 0
        assert storage.list_names(str(tmp_path / "checkpoints")) == ["000000000-0001"], "what was written of it made room"
        with pytest.raises(StorageError, match="No space left"):
            one.finish(later, progress())
    one.save(later, progress())
    one.close()
    assert newest_checkpoint(str(tmp_path))[1]["step"] == 7


def test_a_worker_that_was_cut_off_ends_when_another_goes_on(tmp_path: Path, learner: Learner) -> None:
    old = saver(tmp_path, checkpoint_minutes=0)
    saver(tmp_path)
    old.save(learner, progress())
    with pytest.raises(SupersededError, match="another job goes on with it"):
        while True:
            old.due(1)
    assert storage.list_names(str(tmp_path / "checkpoints")) == []


def test_a_moment_that_is_saved_is_not_written_again(tmp_path: Path, learner: Learner, monkeypatch) -> None:
    one = saver(tmp_path)
    one.finish(learner, progress())
    monkeypatch.setattr(storage, "publish", lambda *_: pytest.fail("the only whole checkpoint was put at risk"))
    one.finish(learner, progress())
    assert newest_checkpoint(str(tmp_path))[1]["step"] == 0


def test_a_late_writer_leaves_alone_what_the_next_life_is_writing(tmp_path: Path, learner: Learner, monkeypatch) -> None:
    old, publish = saver(tmp_path), manifest.publish
    unfinished = f"{tmp_path}/checkpoints/000000009-0002/trainer.safetensors"

    def publish_late(url: str, files: dict[str, bytes]) -> None:
        publish(url, files)
        storage.write_bytes(unfinished, b"of the next life")

    monkeypatch.setattr(storage, "publish", publish_late)
    old.finish(learner, progress())
    assert storage.exists(unfinished)


def test_a_new_life_drops_what_earlier_ones_left_unfinished(tmp_path: Path, learner: Learner) -> None:
    saver(tmp_path).finish(learner, progress())
    storage.write_bytes(f"{tmp_path}/checkpoints/000000003-0001/trainer.safetensors", b"half")
    saver(tmp_path)
    assert storage.list_names(str(tmp_path / "checkpoints")) == ["000000000-0001"]


def test_a_checkpoint_whose_tensors_are_gone_is_passed_over(tmp_path: Path, learner: Learner) -> None:
    one = saver(tmp_path)
    one.finish(learner, progress())
    later = dataclasses.replace(learner)
    later.step = 7
    one.finish(later, progress())
    storage.delete(f"{tmp_path}/checkpoints/000000007-0001/{checkpoint.TENSORS_FILE}")
    assert newest_checkpoint(str(tmp_path))[1]["step"] == 0


def test_best_weights_stay_until_no_checkpoint_names_them(tmp_path: Path, learner: Learner) -> None:
    one = saver(tmp_path)
    run = str(tmp_path)
    for epoch in (1, 2, 3, 4):
        # As a validation does, before the checkpoint that names them.
        storage.write_bytes(f"{run}/best/{epoch:06d}/model", b"weights")
        if epoch == 4:
            break
        learner_then = dataclasses.replace(learner)
        learner_then.step = epoch
        one.finish(learner_then, progress(epoch, best=f"best/{epoch:06d}"))
    assert storage.list_names(f"{run}/best") == ["000002", "000003", "000004"], "those of both checkpoints, and what none names yet"

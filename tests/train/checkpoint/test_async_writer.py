"""Checkpoints in the background: their schedule, failed writes, and the retention of best weights."""

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
from yolor_ray.train.checkpoint.checkpoint import Progress, newest_checkpoint, resume
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner
from yolor_ray.train.optim.schedule import Schedule

CONFIG = TrainConfig(
    network=NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1),
    optim=OptimConfig(epochs=9),
)


@pytest.fixture(scope="module")
def learner() -> Learner:
    torch.manual_seed(0)
    network = Yolor(CONFIG.network, 2, torch.full((3, 3, 2), 10.0))
    return Learner(network, CONFIG, Schedule(CONFIG.optim, 10), network)


def at_step(learner: Learner, step: int) -> Learner:
    copy = dataclasses.replace(learner)
    copy.step = step
    return copy


def progress(epoch: int = 0, best: str = "") -> Progress:
    return Progress("digest", epoch=epoch, seen=np.array([True, False, True]), best=best)


def make_checkpointer(folder: Path, *, step: int = 0, epoch: int = 0, **run: object) -> AsyncCheckpointer:
    return AsyncCheckpointer(str(folder), RunConfig(**run), RunAttempt(str(folder), 1, ""), step=step, epoch=epoch)


def wait_for_background_write(checkpointer: AsyncCheckpointer) -> None:
    """Wait for the write without collecting its result, which `is_due` has to do."""
    checkpointer._writing.exception(timeout=30)


def test_a_checkpoint_is_due_after_so_many_steps_minutes_or_epochs(tmp_path: Path) -> None:
    by_steps = make_checkpointer(tmp_path, step=20, checkpoint_steps=5, checkpoint_minutes=60)
    assert [step for step in range(20, 28) if by_steps.is_due(step, 0)] == [25, 26, 27]
    by_epochs = make_checkpointer(tmp_path, epoch=4, checkpoint_epochs=3, checkpoint_minutes=60)
    assert [epoch for epoch in range(4, 9) if by_epochs.is_due(0, epoch)] == [6, 7, 8]
    assert make_checkpointer(tmp_path, checkpoint_minutes=0).is_due(1, 0)
    assert not make_checkpointer(tmp_path, checkpoint_minutes=60).is_due(10**6, 0)


def test_a_checkpoint_holds_the_state_at_the_time_of_the_call(tmp_path: Path, learner: Learner) -> None:
    checkpointer = make_checkpointer(tmp_path)
    weight = next(iter(learner.network.parameters()))
    before = weight.detach().clone()
    checkpointer.save(learner, progress())
    with torch.no_grad():
        weight += 1
    checkpointer.close()
    tensors, state = newest_checkpoint(str(tmp_path))
    name = next(name for name, _ in learner.network.named_parameters())
    assert torch.equal(tensors[f"network/{name}"], before)
    assert state["seen"]["records"] == 3
    assert storage.list_names(str(tmp_path / "checkpoints")) == ["000000000-0001"]


def test_the_checkpoint_of_an_epoch_waits_for_a_slow_disk_but_training_does_not(tmp_path: Path, learner: Learner, monkeypatch) -> None:
    checkpointer = make_checkpointer(tmp_path, checkpoint_epochs=2, checkpoint_minutes=60)
    disk_is_ready, write = threading.Event(), storage.write_bytes

    def write_slowly(url: str, data: bytes) -> None:
        assert disk_is_ready.wait(10)
        write(url, data)

    monkeypatch.setattr(manifest, "write_bytes", write_slowly)
    checkpointer.save(learner, progress())
    assert not checkpointer.is_due(5, 2)
    disk_is_ready.set()
    wait_for_background_write(checkpointer)
    assert checkpointer.is_due(6, 2)
    checkpointer.save(at_step(learner, 6), progress(epoch=2))
    checkpointer.close()
    assert newest_checkpoint(str(tmp_path))[1]["step"] == 6
    assert not checkpointer.is_due(7, 3), "each pair of epochs has one checkpoint"


def test_a_full_disk_is_logged_and_the_previous_checkpoint_stays(tmp_path: Path, learner: Learner, monkeypatch, caplog) -> None:
    checkpointer = make_checkpointer(tmp_path, checkpoint_minutes=0)
    checkpointer.save(learner, progress(), wait=True)
    write = storage.write_bytes

    def write_to_full_disk(url: str, data: bytes) -> None:
        if url.endswith(checkpoint.STATE_FILE):
            raise StorageError(f"{url}: cannot write it: {OSError(errno.ENOSPC, 'No space left on device')}")
        write(url, data)

    later = at_step(learner, 7)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_bytes", write_to_full_disk)
        checkpointer.save(later, progress())
        wait_for_background_write(checkpointer)
        assert checkpointer.is_due(7, 0)
        assert "event=checkpoint_failed step=7" in caplog.text and "No space left on device" in caplog.text
        assert newest_checkpoint(str(tmp_path))[1]["step"] == 0
        assert storage.list_names(str(tmp_path / "checkpoints")) == ["000000000-0001"], "a failed checkpoint takes no space"
        with pytest.raises(StorageError, match="No space left"):
            checkpointer.save(later, progress(), wait=True)
    checkpointer.save(later, progress())
    checkpointer.close()
    assert newest_checkpoint(str(tmp_path))[1]["step"] == 7


def test_a_partitioned_attempt_ends_when_another_attempt_has_started(tmp_path: Path, learner: Learner) -> None:
    old = make_checkpointer(tmp_path, checkpoint_minutes=0)
    make_checkpointer(tmp_path)
    old.save(learner, progress())
    wait_for_background_write(old)
    with pytest.raises(SupersededError, match="another job continues the run"):
        old.is_due(1, 0)
    assert storage.list_names(str(tmp_path / "checkpoints")) == []


def test_a_state_that_is_saved_is_not_written_again(tmp_path: Path, learner: Learner, monkeypatch) -> None:
    checkpointer = make_checkpointer(tmp_path)
    checkpointer.save(learner, progress(), wait=True)
    monkeypatch.setattr(manifest, "publish", lambda *_: pytest.fail("the only complete checkpoint was put at risk"))
    checkpointer.save(learner, progress(), wait=True)
    assert newest_checkpoint(str(tmp_path))[1]["step"] == 0


def test_a_late_writer_does_not_delete_the_checkpoint_that_the_next_attempt_is_writing(
    tmp_path: Path, learner: Learner, monkeypatch
) -> None:
    old, publish = make_checkpointer(tmp_path), manifest.publish
    unfinished = f"{tmp_path}/checkpoints/000000009-0002/trainer.safetensors"

    def publish_late(url: str, files: dict[str, bytes]) -> None:
        publish(url, files)
        storage.write_bytes(unfinished, b"of the next attempt")

    monkeypatch.setattr(manifest, "publish", publish_late)
    old.save(learner, progress(), wait=True)
    assert storage.exists(unfinished)


def test_a_new_attempt_deletes_the_unfinished_checkpoints_of_earlier_ones(tmp_path: Path, learner: Learner) -> None:
    make_checkpointer(tmp_path).save(learner, progress(), wait=True)
    storage.write_bytes(f"{tmp_path}/checkpoints/000000003-0001/trainer.safetensors", b"half")
    make_checkpointer(tmp_path)
    assert storage.list_names(str(tmp_path / "checkpoints")) == ["000000000-0001"]


def test_a_checkpoint_without_its_tensors_is_skipped(tmp_path: Path, learner: Learner) -> None:
    checkpointer = make_checkpointer(tmp_path)
    checkpointer.save(learner, progress(), wait=True)
    checkpointer.save(at_step(learner, 7), progress(), wait=True)
    storage.delete(f"{tmp_path}/checkpoints/000000007-0001/{checkpoint.TENSORS_FILE}")
    assert newest_checkpoint(str(tmp_path))[1]["step"] == 0


def test_best_weights_stay_while_a_checkpoint_references_them(tmp_path: Path, learner: Learner) -> None:
    checkpointer = make_checkpointer(tmp_path)
    run = str(tmp_path)
    for epoch in (1, 2, 3, 4):
        # As a validation does, before the checkpoint that references the weights.
        storage.write_bytes(f"{run}/best/{epoch:06d}/model", b"weights")
        if epoch < 4:
            checkpointer.save(at_step(learner, epoch), progress(epoch, best=f"best/{epoch:06d}"), wait=True)
    assert storage.list_names(f"{run}/best") == ["000002", "000003", "000004"], "two are referenced, the last one not yet"


def test_a_checkpoint_of_version_0_1_resumes_with_the_current_names_of_losses(tmp_path: Path, learner: Learner) -> None:
    before = progress(epoch=1)
    before.rows = [{"epoch": 1, "loss": 0.5, "classes": 0.25}]
    make_checkpointer(tmp_path).save(learner, before, wait=True)
    resumed = resume(str(tmp_path), at_step(learner, 0), progress(), DistContext(0, 1, torch.device("cpu")))
    assert resumed.rows == [{"epoch": 1, "loss": 0.5, "cls": 0.25}]

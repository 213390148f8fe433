"""Rot in a run's files: bits, ends, whole files. The checkpoint before is taken, and the log names the file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from damages import DAMAGES, cut, flip
from hostile_readers import checkpoint_files, learner, weights
from yolor_ray.errors import IntegrityError, WeightsError
from yolor_ray.io import manifest, storage
from yolor_ray.train.checkpoint.checkpoint import (
    CHECKPOINTS,
    STATE_FILE,
    TENSORS_FILE,
    Progress,
    newest_checkpoint,
    prune_checkpoints,
    resume,
)
from yolor_ray.train.distributed import DistContext

FILES = (TENSORS_FILE, STATE_FILE, manifest.MANIFEST)


def make_run(folder: Path, *steps: str) -> str:
    """Publish checkpoints of the given names, all with the same content, and their best weights."""
    for name in steps:
        manifest.publish(storage.join(str(folder), CHECKPOINTS, name), checkpoint_files())
    return str(folder)


def damage_checkpoint(run: str, name: str, file: str = TENSORS_FILE) -> None:
    flip(0.5)(Path(run, CHECKPOINTS, name, file))


def resume_run(run: str) -> Progress:
    return resume(run, learner(), Progress("digest", seen=np.zeros(3, bool)), DistContext(0, 1, torch.device("cpu")))


def taken(run: str, caplog: pytest.LogCaptureFixture) -> str:
    """Return the name of the checkpoint that a run resumes from, by the log of those that it does not take."""
    names = sorted(storage.list_names(storage.join(run, CHECKPOINTS)), key=lambda name: name.partition("-")[::-1])
    caplog.clear()
    assert resume_run(run).epoch == 1
    return next(name for name in reversed(names) if name not in caplog.text)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_every_damage_of_every_file_is_found_and_the_checkpoint_before_is_taken(
    file: str, damage: Callable, tmp_path: Path, caplog
) -> None:
    run = make_run(tmp_path, "000000003-0001", "000000007-0001")
    damage(tmp_path / CHECKPOINTS / "000000007-0001" / file)
    assert taken(run, caplog) == "000000003-0001"
    assert "checkpoints/000000007-0001" in caplog.text
    if file != manifest.MANIFEST:
        assert f"000000007-0001/{file}: " in caplog.text and "next='the checkpoint before it is taken'" in caplog.text


def test_a_run_without_any_whole_checkpoint_does_not_begin_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path, "000000003-0001", "000000007-0001")
    for name in ("000000003-0001", "000000007-0001"):
        damage_checkpoint(run, name)
    with pytest.raises(
        IntegrityError, match=r"found no whole checkpoint among 2: .*000000007-0001/trainer.safetensors.*restore one, or delete"
    ):
        newest_checkpoint(run)


def test_checkpoints_of_an_attempt_that_began_earlier_are_the_newest_and_stay(tmp_path: Path, caplog) -> None:
    """After two damaged checkpoints, those of the next attempt have smaller steps: the oldest names must not be the first to go."""
    run = make_run(tmp_path, "000000005-0001", "000000090-0001", "000000100-0001", "000000006-0002")
    for name in ("000000090-0001", "000000100-0001"):
        damage_checkpoint(run, name)
    assert taken(run, caplog) == "000000006-0002"
    prune_checkpoints(run, 2)
    assert storage.list_names(storage.join(run, CHECKPOINTS)) == ["000000006-0002", "000000100-0001"]
    make_run(tmp_path, "000000007-0002")
    prune_checkpoints(run, 2)
    assert storage.list_names(storage.join(run, CHECKPOINTS)) == ["000000006-0002", "000000007-0002"]


@pytest.mark.parametrize("damage", [flip(0.5), cut(0.0), Path.unlink], ids=["bit", "empty", "missing"])
def test_a_damaged_state_does_not_stop_the_next_attempt_and_deletes_no_best_weights(damage: Callable, tmp_path: Path) -> None:
    run = make_run(tmp_path, "000000003-0001", "000000007-0001")
    for name in ("000001-0001", "000002-0001"):
        storage.write_bytes(storage.join(run, "best", name, "model"), b"weights")
    damage(tmp_path / CHECKPOINTS / "000000007-0001" / STATE_FILE)
    prune_checkpoints(run, 2)
    assert storage.list_names(storage.join(run, "best")) == ["000001-0001", "000002-0001"], "the whole checkpoint names the first"


@pytest.mark.parametrize("damage", [flip(0.5), cut(0.5), Path.unlink], ids=["bit", "half", "missing"])
@pytest.mark.parametrize("file", ["config.json", "weights.safetensors", manifest.MANIFEST])
def test_damaged_best_weights_are_found_when_a_run_resumes(file: str, damage: Callable, tmp_path: Path) -> None:
    run, best = make_run(tmp_path, "000000003-0001"), tmp_path / "best/000001-0001"
    manifest.publish(str(best), weights())
    assert resume_run(run).best == "best/000001-0001"
    damage(best / file)
    with pytest.raises(
        IntegrityError, match=f"best/000001-0001: the best weights so far are damaged: .*{file}.*; restore the file, or delete"
    ):
        resume_run(run)


def test_a_run_whose_best_weights_were_deleted_goes_on_and_says_so(tmp_path: Path, caplog) -> None:
    progress = resume_run(make_run(tmp_path, "000000003-0001"))
    assert (progress.epoch, progress.best, progress.best_fitness) == (1, "", Progress("").best_fitness)
    assert "event=best_weights_gone url=" in caplog.text


def test_a_checkpoint_of_other_tensors_is_refused_by_name(tmp_path: Path) -> None:
    run = make_run(tmp_path, "000000003-0001")
    tensors, state = newest_checkpoint(run)
    name = next(name for name in tensors if name.startswith("network/"))
    checkpoint = {**tensors, f"optimizer/momentum_buffer/{name.partition('/')[2]}": torch.zeros(7)}
    publish_tensors(run, checkpoint)
    with pytest.raises(WeightsError, match=r"does not fit this network: found the optimizer's 'momentum_buffer/.*' of shape \(7,\)"):
        resume(run, learner(), Progress(state["digest"], seen=np.zeros(3, bool)), DistContext(0, 1, torch.device("cpu")))


def publish_tensors(run: str, tensors: dict[str, torch.Tensor]) -> None:
    files = checkpoint_files() | {TENSORS_FILE: safetensors.torch.save(tensors)}
    manifest.publish(storage.join(run, CHECKPOINTS, "000000003-0001"), files)


def test_a_run_goes_on_where_its_folder_was_copied_to(tmp_path: Path, s3, caplog) -> None:
    run = make_run(tmp_path / "here", "000000003-0001", "000000007-0001")
    damage_checkpoint(run, "000000007-0001")
    shutil.copytree(run, tmp_path / "elsewhere" / "other")
    bucket = f"{s3()}/moved"
    for file in Path(run).rglob("*"):
        if file.is_file():
            storage.write_bytes(storage.join(bucket, str(file.relative_to(run))), file.read_bytes())
    shutil.rmtree(run)
    for copied in (str(tmp_path / "elsewhere" / "other"), bucket):
        assert taken(copied, caplog) == "000000003-0001", copied

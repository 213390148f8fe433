"""A loader in a process of its own makes the batches of a loader in this process, and ends with it, however it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.label_spec import BOXES_ONLY, LabelSpec
from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.epoch_plan import Steps, plan_steps
from yolor_ray.data.loading.epoch_windows import Window, epoch_windows
from yolor_ray.data.loading.loader import Loader
from yolor_ray.data.loading.loader_process import LoaderProcess
from yolor_ray.data.loading.shared_buffers import open_memory
from yolor_ray.data.shards.arrow import to_table
from yolor_ray.data.shards.records import Record
from yolor_ray.data.shards.row_groups import RowGroup, RowGroups
from yolor_ray.data.synthetic.scenes import IMAGE_CLASSES, KEYPOINT_NAMES, scene
from yolor_ray.errors import ImageError, IntegrityError, LoaderError

IMAGES, ROWS, SIDE = 23, 4, 64
GROUPS = RowGroups([(0, "part", [min(ROWS, IMAGES - first) for first in range(0, IMAGES, ROWS)])])
EVERYTHING = LabelSpec(
    masks=True, keypoint_names=KEYPOINT_NAMES, identities=np.arange(48), image_classes=np.ones((1, len(IMAGE_CLASSES)), bool)
)
SETTINGS = {"image_px": SIDE, "augment": AugmentConfig(mosaic=0.7, mixup=0.3, degrees=5), "seed": 0, "decode_threads": 2}
RECORDS = [scene(index, size_px=64) for index in range(IMAGES)]
TRAINER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_loader_process import loader_process, plan
loader = loader_process()
batches = loader.epoch(*plan())
next(batches)
print("loading", flush=True)
sys.stdin.read()
"""


class Source:
    """A source in memory; the row group `broken` is damaged."""

    def __init__(self, records: Sequence[Record] = RECORDS, broken: int | None = None) -> None:
        self.records, self.broken = records, broken

    def __call__(self, groups: Iterable[RowGroup]) -> Iterator[pa.Table]:
        for group in groups:
            if group.index == self.broken:
                raise IntegrityError("part: found another hash")
            yield to_table(self.records[group.first_record : group.first_record + group.rows])


def plan(epoch: int = 0, batch: int = 4) -> tuple[list[Window], Steps]:
    windows = epoch_windows(GROUPS, records_per_window=8, seed=0, epoch=epoch)
    return windows, plan_steps(windows, np.zeros(IMAGES, bool), rank=0, world_size=1, batch=batch)


def loader_process(source: Source | None = None, label_spec: LabelSpec = BOXES_ONLY) -> LoaderProcess:
    return LoaderProcess(source or Source(), label_spec=label_spec, **SETTINGS)


def contents(batch: Batch) -> list[tuple[str, bytes]]:
    return [(name, b"" if array is None else array.tobytes()) for name, array in vars(batch).items()]


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if any("loader_main" in part for part in p.cmdline())]


@pytest.mark.parametrize("label_spec", [BOXES_ONLY, EVERYTHING])
def test_batches_equal_those_of_a_loader_in_this_process_over_epochs_of_any_size(label_spec):
    with closing(Loader(Source(), label_spec=label_spec, **SETTINGS)) as here, closing(loader_process(label_spec=label_spec)) as there:
        for epoch, batch in enumerate((4, 1, 7)):
            for mosaic_closed in (False, True):
                expected = [contents(made) for made in here.epoch(*plan(epoch, batch), mosaic_closed=mosaic_closed)]
                found = [contents(made) for made in there.epoch(*plan(epoch, batch), mosaic_closed=mosaic_closed)]
                assert found == expected
                assert len(found) == -(-IMAGES // batch)


def test_a_batch_stays_intact_until_the_next_batch_is_taken():
    with closing(loader_process(label_spec=EVERYTHING)) as loader:
        batches = loader.epoch(*plan(batch=2))
        previous = next(batches)
        copy = contents(previous)
        for batch in batches:
            assert contents(previous) == copy
            previous, copy = batch, contents(batch)


def test_an_empty_epoch_has_no_batches_and_the_next_epoch_has_all():
    windows, steps = plan()
    with closing(loader_process()) as loader:
        assert list(loader.epoch(windows, steps[:0])) == []
        assert len(list(loader.epoch(windows, steps))) == len(steps)


def test_an_epoch_left_early_does_not_disturb_the_next():
    with closing(loader_process()) as loader:
        next(loader.epoch(*plan()))
        expected = [contents(batch) for batch in Loader(Source(), **SETTINGS).epoch(*plan(1))]
        assert [contents(batch) for batch in loader.epoch(*plan(1))] == expected
    assert children() == []


def test_an_error_of_the_source_is_raised_as_it_is():
    with closing(loader_process(Source(broken=3))) as loader, pytest.raises(IntegrityError, match="part: found another hash"):
        list(loader.epoch(*plan()))


def test_a_damaged_image_ends_the_epoch_with_an_error_that_names_its_record():
    broken = [replace(record, image=b"\xff\xd8\xff\xe0 no picture") if n == 5 else record for n, record in enumerate(RECORDS)]
    with closing(loader_process(Source(broken))) as loader:
        with pytest.raises(ImageError, match=RECORDS[5].name) as caught:
            list(loader.epoch(*plan()))
        assert caught.value.code == "truncated_image"


def test_a_killed_process_is_told_and_the_next_epoch_has_another_one():
    with closing(loader_process()) as loader:
        batches = loader.epoch(*plan(batch=1))
        next(batches)
        [process] = children()
        process.kill()
        with pytest.raises(LoaderError, match="ended by SIGKILL"):
            list(batches)
        assert len(list(loader.epoch(*plan()))) == len(plan()[1])


def test_signals_for_the_process_group_do_not_end_the_process():
    with closing(loader_process()) as loader:
        batches = loader.epoch(*plan(batch=1))
        next(batches)
        [process] = children()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        assert len(list(batches)) == IMAGES - 1


def test_the_process_ends_with_a_killed_trainer():
    arguments = [sys.executable, "-c", TRAINER, str(Path(__file__).parent)]
    trainer = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None and trainer.stdout.readline() == "loading\n"
    [process] = psutil.Process(trainer.pid).children()
    trainer.kill()
    trainer.communicate()
    assert psutil.wait_procs([process], timeout=10)[1] == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /dev/shm")
def test_batches_take_no_space_of_dev_shm():
    memory = open_memory()
    try:
        assert str(Path(f"/proc/self/fd/{memory}").readlink()).startswith("/memfd:")
    finally:
        os.close(memory)

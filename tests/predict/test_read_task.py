"""The read task of Ray Data: images of a part or the error of reading it, and what its process imports."""

import pickle
import subprocess
import sys

import pyarrow as pa

from yolor_ray.errors import NotFoundError
from yolor_ray.predict.read_task import read_part
from yolor_ray.predict.sources import list_parts


def read(part):
    return pickle.loads(read_part(pa.table({"task": [pickle.dumps((3, "key", part))]}))["part"][0].as_buffer())


def test_a_read_task_passes_on_the_images_of_a_part_with_its_index_and_key(photos):
    (part,) = list_parts(str(photos))
    assert read(part) == (3, "key", list(part.read()))


def test_a_read_task_passes_on_the_error_of_reading_as_a_value(photos, tmp_path):
    (part,) = list_parts(str(photos))
    photos.rename(tmp_path / "moved")
    *_, error = read(part)
    assert isinstance(error, NotFoundError)


def test_a_process_of_read_tasks_imports_no_torch():
    program = "import sys, yolor_ray.predict.read_task; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "yolor_ray.predict.sources" in loaded and "torch" not in loaded

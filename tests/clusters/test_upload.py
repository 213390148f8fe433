"""Upload of `ray job submit --working-dir .`: the code and small text files, whatever else lies in the folder."""

import shutil
import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env import packaging

ROOT = Path(__file__).parents[2]
CODE = {"jobs/train.py", "yolor_ray/cli.py", "yolor_ray/data/rle.py", "yolor_ray/model/starting_weights/weights.safetensors"}
TEXT = {"my_preset.json", "my_job.py", "names.txt", "serve.yaml"}
OTHER = {
    "data/part-0.parquet",
    "photos/a.jpg",
    "photos/names.txt",
    "a/b.bin",
    "runs/demo/weights/config.json",
    "best.pt",
    ".env",
    "tests/x.py",
}
OTHER |= {".venv/lib/python3.11/site.py", "venv/x.py", ".git/config", "yolor_ray/__pycache__/cli.pyc", "data 2/x.json", "x/jobs/train.py"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    for name in CODE | TEXT | OTHER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder)
    return folder


def uploaded(folder):
    archive = folder.parent / "upload.zip"
    packaging.create_package(str(folder), archive, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(archive) as content:
        return {name for name in content.namelist() if not name.endswith("/")}


def test_code_and_small_text_files_are_uploaded_and_nothing_else(folder):
    assert uploaded(folder) == CODE | TEXT


def test_a_large_folder_beside_the_code_is_not_read(folder):
    # The hash of the upload, which Ray makes of all its bytes, does not depend on the folder.
    def upload_url():
        return packaging.get_uri_for_directory(str(folder), include_gitignore=True, excludes=get_runtime_env_default_excludes())

    before = upload_url()
    shutil.rmtree(folder / "data")
    (folder / "data").write_text("another")
    assert upload_url() == before
    (folder / "my_job.py").write_text("changed")
    assert upload_url() != before


def test_this_checkout_is_uploaded_whole_and_small(tmp_path):
    archive = tmp_path / "upload.zip"
    packaging.create_package(str(ROOT), archive, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(archive) as content:
        names = set(content.namelist())
    code = {str(path.relative_to(ROOT)) for folder in ("jobs", "yolor_ray") for path in (ROOT / folder).rglob("*.py")}
    assert code <= names and "yolor_ray/report/page.html" in names
    assert archive.stat().st_size < 10e6

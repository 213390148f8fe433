"""The wheel in an environment that holds its declared dependencies and nothing else: an undeclared import fails there."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", *(path.name for path in ROOT.glob("requirements*.txt")), "yolor_ray")
TRAIN = "train demo --data.train scenes:8 --data.val scenes:4 --data.image_px 64 --optim.epochs 2 --run.name tiny"
DETECT = """
import numpy as np
import yolor_ray as yr

detector = yr.Detector("runs/tiny/weights")
result = detector(np.zeros((48, 64, 3), np.uint8), confidence=0.001)
print(len(detector.classes), result.width, result.height)
"""


def required(requirements: list[str]) -> set[str]:
    """Return the names of the installed distributions that requirements bring, directly or not."""
    extras_by_name: dict[str, set[str]] = {}
    pending = [Requirement(text) for text in requirements]
    while pending:
        requirement = pending.pop()
        extras = {""} | requirement.extras
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        new_extras = extras - extras_by_name.get(requirement.name, set())
        if not new_extras:
            continue
        extras_by_name.setdefault(requirement.name, set()).update(new_extras)
        for text in distribution(requirement.name).requires or []:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                child.marker = None
                pending.append(child)
    return set(extras_by_name)


def link(name: str, site_packages: Path) -> None:
    """Put an installed distribution into another environment with its compiled files, by hard links where the file system has them."""
    installed = distribution(name)
    sources = [file for file in installed.files or [] if ".." not in file.parts and file.suffix != ".pyc"]
    compiled = [Path(importlib.util.cache_from_source(str(file))) for file in sources if file.suffix == ".py"]
    for file in [*sources, *compiled]:
        source, target = Path(str(installed.locate_file(file))), site_packages / file
        if not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except FileExistsError:
            pass
        except OSError:
            shutil.copy2(source, target)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    build = ["-m", "pip", "wheel", ".", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist"]
    subprocess.run([sys.executable, *build], cwd=folder, check=True)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel beside its declared dependencies; the value is the folder of the environment's programs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    for name in sorted(required([line for line in requirements if line and not line.startswith("#")])):
        link(name, site_packages)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    # Without an index, a requirement that the linked distributions do not meet is an error.
    subprocess.run([*pip, "install", "--quiet", "--no-index", str(wheel)], check=True)
    subprocess.run([*pip, "check"], check=True)
    return folder / "bin"


def run(environment: Path, folder: Path, *command: str) -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY_"))}
    done = subprocess.run(
        [str(environment / command[0]), *command[1:]], cwd=folder, env=variables, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_the_wheel_installs_beside_its_dependencies_alone_and_trains(environment: Path, tmp_path: Path) -> None:
    result = json.loads(run(environment, tmp_path, "yolor-ray", *TRAIN.split()))
    assert result["weights"] == str(tmp_path / "runs" / "tiny" / "weights")
    assert run(environment, tmp_path, "python", "-c", DETECT).endswith("64 48")


def test_the_wheel_holds_its_pages_and_types_and_no_exact_pins(wheel: Path) -> None:

    names = zipfile.ZipFile(wheel).namelist()
    pages = ("serve/http/page.html", "serve/http/docs.html", "report/page.html", "pack/health/health.html")
    assert {"yolor_ray/py.typed", *(f"yolor_ray/{page}" for page in pages)} <= set(names)
    (metadata,) = (name for name in names if name.endswith("METADATA"))
    lines = zipfile.ZipFile(wheel).read(metadata).decode().splitlines()
    pinned = [line for line in lines if line.startswith("Requires-Dist") and "==" in line.split(";")[0] and "==2.60.*" not in line]
    assert pinned == []

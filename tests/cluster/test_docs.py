"""Every command of README.md and docs/*.md, run as written, on small data and for one epoch.

The commands run in this process on the shared cluster, since the start of a process and of a Ray takes longer than most of them.
"""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from yolor_ray import cli
from yolor_ray.config.presets import PRESETS
from yolor_ray.data.synthetic.scenes import CLASSES, IMAGE_CLASSES, KEYPOINT_NAMES, scene
from yolor_ray.io import manifest, storage

# Ray Data reads deprecated settings of its own.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)
ROOT = Path(__file__).resolve().parents[2]
PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
SETUP = ("make", "source", "pip")
"""Programs of lines that set up the environment, which this process already has."""
SMALL = {
    "train": {"--data.image_px": "64", "--optim.epochs": "1"},
    "tune ablation": {"--data.image_px": "64", "--optim.epochs": "1", "--seeds": "1", "--variants": "pr-multiply"},
    "tune search": {"--data.image_px": "64", "--optim.epochs": "1", "--trials": "1"},
    "train demo": {"--data.image_px": "64", "--optim.epochs": "1", "--data.train": "scenes:24", "--data.val": "scenes:8"},
    "train p6": {
        "--data.image_px": "128",
        "--optim.epochs": "1",
        "--network.stem_width": "8",
        "--network.widths": "16 32 48 64 80",
    },
    "benchmark learning": {"--data.image_px": "64", "--minutes": "0.05", "--seeds": "1"},
    "predict": {"--engine": "torch"},
    "export --upstream": {"--check_px": "128"},
    "export --weights weights/yolor_p6": {"--image_px": "128"},
}
"""Flags that make a command small, by the words that it begins with; the longest beginning counts."""


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the commands of a page that run: the lines of shell blocks, and the demo, which a console block shows with its output."""
    demo = [line.removeprefix("$ ") for block in blocks(page, "console") for line in block.splitlines() if line == "$ yolor-ray train demo"]
    return demo + [line for block in blocks(page, "bash") for line in block.splitlines() if line and not line.startswith("#")]


def small(words: list[str]) -> list[str]:
    """Return a command with the flags of `SMALL` in place of its own."""
    text = " ".join(words)
    flags = SMALL[max((start for start in SMALL if f"{text} ".startswith(f"{start} ")), key=len, default="")] if text else {}
    kept: list[str] = []
    dropped = False
    for word in words:
        dropped = word in flags if word.startswith("--") else dropped
        kept += [] if dropped else [word]
    return [*kept, *(word for name, value in flags.items() for word in (name, *value.split()))]


SMALL[""] = {}


def write_photo(photos: Path, number: int) -> None:
    """Write a scene as a photo with a PASCAL VOC file."""
    record = scene(number)
    (photos / "JPEGImages" / f"{number:03d}.jpg").write_bytes(record.image)
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{number:03d}.jpg"
    size = ElementTree.SubElement(root, "size")
    for side, pixels in (("width", record.width), ("height", record.height)):
        ElementTree.SubElement(size, side).text = str(pixels)
    for label, (x1, y1, x2, y2) in zip(record.objects.labels, record.objects.boxes_xyxy, strict=True):
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = CLASSES[label]
        box = ElementTree.SubElement(element, "bndbox")
        for name, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ElementTree.SubElement(box, name).text = str(round(float(value)))
    ElementTree.ElementTree(root).write(photos / "Annotations" / f"{number:03d}.xml")


def write_coco(photos: Path, file: str, numbers: range) -> None:
    """Write scenes with the annotations of all tasks as COCO JSON, and with their boxes as YOLO text."""
    person = {"id": CLASSES.index("person"), "name": "person", "keypoints": list(KEYPOINT_NAMES)}
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES) if name != "person"]
    images, annotations = [], []
    for number in numbers:
        record = scene(number, size_px=96)
        objects = record.objects
        (photos / "images" / f"{number:03d}.jpg").write_bytes(record.image)
        labels = [IMAGE_CLASSES[label] for label in record.image_labels]
        images.append({"id": number, "file_name": f"{number:03d}.jpg", "width": 96, "height": 96, "labels": labels})
        lines = []
        for row, (x1, y1, x2, y2) in enumerate(objects.boxes_xyxy.tolist()):
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": number, "category_id": int(objects.labels[row])},
                    **{"bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(objects.areas[row]), "identity": int(objects.identities[row])},
                    "segmentation": {"size": [96, 96], "counts": objects.masks[row].decode()},
                    "keypoints": objects.keypoints[row].reshape(-1).tolist(),
                }
            )
            center = ((x1 + x2) / 192, (y1 + y2) / 192, (x2 - x1) / 96, (y2 - y1) / 96)
            lines.append(" ".join(map(str, (objects.labels[row], *center))))
        (photos / "labels" / f"{number:03d}.txt").write_text("\n".join(lines))
    (photos / file).write_text(json.dumps({"images": images, "annotations": annotations, "categories": [*categories, person]}))


def write_exports(folder: Path) -> None:
    """Write exports with all splits: my-export in PASCAL VOC as Roboflow writes it, dogs-export in YOLO with data.yaml."""
    for split, numbers in (("train", range(16)), ("valid", range(16, 24))):
        for kind in ("JPEGImages", "Annotations"):
            (folder / "my-export" / split / kind).mkdir(parents=True)
        for kind in ("images", "labels"):
            (folder / "dogs-export" / split / kind).mkdir(parents=True)
        for number in numbers:
            write_photo(folder / "my-export" / split, number)
        write_coco(folder / "dogs-export" / split, "unused.json", numbers)
        (folder / "dogs-export" / split / "unused.json").unlink()
    names = "\n".join(f"  {label}: {name}" for label, name in enumerate(CLASSES))
    (folder / "dogs-export" / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\nnames:\n{names}\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: annotated photos in each format, under the paths of the documentation."""
    folder = tmp_path_factory.mktemp("docs")
    photos = folder / "photos"
    for name in ("JPEGImages", "Annotations", "images", "labels"):
        (photos / name).mkdir(parents=True)
    for number in range(24):
        write_photo(photos, number)
    (photos / "train.txt").write_text("".join(f"{n:03d}\n" for n in range(16)))
    (photos / "val.txt").write_text("".join(f"{n:03d}\n" for n in range(16, 24)))
    write_coco(photos, "train.json", range(16))
    write_coco(photos, "val.json", range(16, 24))
    (photos / "names.txt").write_text("\n".join(CLASSES))
    for number, name in enumerate(("photo.jpg", "photo-2.jpg")):
        (folder / name).write_bytes(scene(24 + number).image)
    write_exports(folder)
    (folder / "reid").mkdir()
    for identity in range(4):
        for camera in range(2):
            (folder / "reid" / f"car_{identity}_cam{camera}.jpg").write_bytes(scene(2 * identity + camera, size_px=64).image)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, s3: Callable[[], str], ray_cluster: dict[str, str]) -> Iterator[Callable[[str], dict]]:
    """Run one line of the documentation in the user's folder; the value is the printed result."""
    bucket = s3()
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        for name, value in cli.PROCESS_SETTINGS.items():
            patch.setenv(name, value)

        def run_line(line: str) -> dict:
            program, *words = shlex.split(line.replace("s3://bucket", bucket))
            if program == "python":
                words[0] = Path(words[0]).stem
            name, *arguments = small(words)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as exit_:
                cli.run(name, cli.JOBS[name], arguments, f"yolor-ray {name}")
            assert exit_.value.code == 0, line
            return json.loads(printed.getvalue().splitlines()[-1])

        yield run_line


def check(line: str, result: dict) -> None:
    """Check the result of a command by its job."""
    job = line.split()[1]
    if " pack check " in line:
        assert storage.exists(result["health"]), line
    elif job == "pack":
        outputs = [part["output"] for part in result.get("splits", {"": result}).values()]
        assert result["faults"] == {} and all(storage.exists(f"{output}/dataset.json") for output in outputs), line
    elif job == "train":
        assert manifest.is_published(result["weights"]) and {"AP", "AP50"} <= result["metrics"].keys(), line
    elif job == "evaluate":
        assert {"AP", "AP50", "AR100"} <= result.keys(), line
    elif job == "export":
        # The random weights of the upstream network amplify rounding errors 10,000 times.
        assert (result["max_error"] <= 1e-4 or "yolor_p6" in line) and manifest.is_published(result["output"]), line
    elif job == "predict":
        assert result["images"] and not result["faults"] and manifest.is_published(result["output"]), line
    elif job == "benchmark":
        assert storage.exists(result["report"]) and result["epochs"] >= 1 and result["AP"] >= 0, line
    else:
        assert job == "tune" and storage.exists(result["report"]) and result["failed"] == 0, line


def run_page(page: str, run: Callable[[str], dict]) -> dict[str, dict]:
    """Run the commands of a page and return their results."""
    results = {}
    for line in commands(page):
        if line.split()[0] in SETUP:
            continue
        if line.split()[1] == "serve":
            # A server does not end; its flags are read.
            assert cli.JOBS["serve"].read(shlex.split(line)[2:], "yolor-ray serve").weights
            continue
        results[line] = run(line)
        check(line, results[line])
    return results


@pytest.fixture(scope="module")
def readme(run: Callable[[str], dict]) -> dict[str, dict]:
    """The results of README's commands, whose datasets and weights the other pages use."""
    return run_page("README.md", run)


def test_the_readme_leads_from_the_demo_and_from_photos_to_fused_weights(readme: dict[str, dict], folder: Path) -> None:
    jobs = [line.split()[1] for line in readme]
    assert jobs == ["train", "pack", "train", "evaluate", "export"]
    assert (folder / "runs" / "demo" / "report" / "predictions.png").exists()
    (packed,) = [result for line, result in readme.items() if " pack " in line]
    assert {split: part["images"] for split, part in packed["splits"].items()} == {"train": 16, "val": 8}


@pytest.mark.usefixtures("readme")
@pytest.mark.parametrize("page", ["README.md", "python.md"])
def test_the_python_of_a_page_runs_like_a_notebook(page: str) -> None:
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(block.replace('"optim.epochs": 30', '"optim.epochs": 1, "data.image_px": 64'), names)
    assert len(names["detections"].boxes_xyxy) == len(names["detections"].classes)
    assert manifest.is_published(names["result"]["weights"])


@pytest.mark.usefixtures("readme")
@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"README.md", "published-weights.md"}))
def test_every_command_of_a_page_runs(page: str, run: Callable[[str], dict]) -> None:
    for line, result in run_page(page, run).items():
        if "--network.tasks" in line:
            assert {"AP", "segment/AP", "pose/AP", "classify/mAP", "embed/rank1", "embed/mAP"} <= result["metrics"].keys()


@pytest.mark.usefixtures("readme")
def test_the_authors_weights_are_imported_trained_further_and_exported(run: Callable[[str], dict], shared: Path, folder: Path) -> None:
    """The test imports P6 with an eighth of its widths, in the main branch's own format."""
    shutil.copy(shared / "parity" / "main_p6_narrow.pt", folder / "yolor_p6.pt")
    imported, trained, exported = run_page("published-weights.md", run).values()
    assert imported["layout"] == "main" and imported["network"].startswith("YOLOR-P6")
    assert trained["weights"] == str(folder / "runs" / "from-p6" / "weights")
    assert exported["format"] == "onnx"


def test_the_two_commands_are_targets_of_the_makefile_and_the_demo_runs_as_a_script(folder: Path) -> None:
    first = next(block for block in blocks("README.md", "bash") if "make demo" in block)
    assert first.splitlines() == ["make demo", "make test"]
    dry = subprocess.run(["make", "--dry-run", "demo", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m pytest" in dry and "jobs/train.py demo" in dry


def test_every_job_and_preset_of_the_documentation_exists() -> None:
    for page, text in PAGES.items():
        assert {name for name in re.findall(r"jobs/(\w+)\.py", text)} <= {*cli.JOBS, "JOB"}, page
        assert {name for name in re.findall(r"yolor-ray (\w+)", text)} <= {*cli.JOBS, "JOB"}, page
    table = PAGES["training.md"].split("| preset |", 1)[1].split("\n\n", 1)[0]
    assert {name for row in table.splitlines()[2:] for name in re.findall(r"`([\w-]+)`", row)} == set(PRESETS)


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    for page, text in PAGES.items():
        base = ROOT if page == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            assert target.startswith(("http://", "https://")) or (base / target).exists(), f"{page}: {target}"


def test_every_flag_of_the_documentation_is_a_flag_of_its_job() -> None:
    """Commands for clouds and clusters do not run here; their flags are read."""
    for page, text in PAGES.items():
        shell = "".join(re.findall(r"```(?:bash|console)?\n.*?```", text, re.DOTALL))
        for line in re.findall(r"(?:yolor-ray|python jobs/)\s?(\w+(?:\.py)? [^\n`|]*)", shell.replace("\\\n", " ")):
            words = line.replace(".py", "", 1).split()
            if words[0] in cli.JOBS and not {"…", "..."} & set(words):
                flags = {word.split("=")[0] for word in words if word.startswith("--")}
                assert flags <= known_flags(tuple(words[:2])), f"{page}: {line}: {flags - known_flags(tuple(words[:2]))}"


def known_flags(start: tuple[str, ...]) -> set[str]:
    """Return the flags in the help of a job, or of a job's subcommand."""
    job, subcommand = (*start, "")[:2]
    words = [subcommand] if subcommand and not subcommand.startswith("-") else []
    words = words or {"train": ["nano"], "tune": ["search"], "benchmark": ["inference"], "pack": ["voc"]}.get(job, [])
    # The flags of a training are those of the preset, which is a subcommand of its own.
    words += ["nano"] if words == ["ingest"] else []
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.JOBS[job].read([*words, "--help"], job)
    return {flag.rstrip(",") for flag in re.findall(r"--[\w.-]+", printed.getvalue())} | {"--preset_file", "--preset-file", "--help"}

"""Run the README's commands as they stand there, on small data and for a single epoch."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from yolor_ray.data.synthetic.scenes import CLASSES, IMAGE_CLASSES, KEYPOINT_NAMES, scene

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
STUDIES = "Which of it helps my data"


def commands(section: str) -> list[str]:
    """Return the lines of the first shell block of a section."""
    text = README.split(f"## {section}\n", 1)[1]
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return block.group(1).splitlines()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the README's relative paths lead to the jobs and to a few annotated photos in VOC format."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "jobs").symlink_to(ROOT / "jobs")
    photos = folder / "photos"
    for name in ("JPEGImages", "Annotations"):
        (photos / name).mkdir(parents=True)
    for number in range(24):
        write_photo(photos, number)
    (photos / "train.txt").write_text("".join(f"{n:03d}\n" for n in range(16)))
    (photos / "val.txt").write_text("".join(f"{n:03d}\n" for n in range(16, 24)))
    return folder


@pytest.fixture(scope="module")
def packed(place: Path) -> list[int]:
    """Pack the photos as the README does, for all sections that train on them; how many images each set has."""
    return [run(line, place)["images"] for line in commands("Your own photos")[:2]]


def write_photo(photos: Path, number: int) -> None:
    record = scene(number)
    (photos / "JPEGImages" / f"{number:03d}.jpg").write_bytes(record.image)
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{number:03d}.jpg"
    size = ElementTree.SubElement(root, "size")
    for side, pixels in (("width", record.width), ("height", record.height)):
        ElementTree.SubElement(size, side).text = str(pixels)
    for label, (x1, y1, x2, y2) in zip(record.objects.labels, record.objects.boxes_xyxy, strict=True):
        thing = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(thing, "name").text = CLASSES[label]
        box = ElementTree.SubElement(thing, "bndbox")
        for name, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ElementTree.SubElement(box, name).text = str(round(float(value)))
    ElementTree.ElementTree(root).write(photos / "Annotations" / f"{number:03d}.xml")


def run(line: str, place: Path, cluster: dict[str, str] | None = None) -> dict:
    """Run one line in a shell and return the JSON that it printed last; what needs Ray starts its own, or joins the cluster."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**(cluster or os.environ), "PATH": path, "OMP_NUM_THREADS": "1"}
    if cluster is None:
        environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(line, shell=True, cwd=place, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def shortened(line: str) -> str:
    """Return the same command with small images and one epoch."""
    line = line.replace("--data.image_px 416", "").replace("--optim.epochs 300", "")
    return f"{line} --data.image_px 64 --optim.epochs 1" if "train.py" in line else line


def test_the_two_commands_are_targets_of_the_makefile_and_demo_needs_nothing(place: Path) -> None:
    assert commands("Two commands") == ["make demo", "make test"]
    told = subprocess.run(["make", "--dry-run", "demo", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    demo = next(line for line in told.splitlines() if "jobs/train.py demo" in line)
    assert "-m pytest" in told
    result = run(f"python {demo.split(maxsplit=1)[1]} --optim.epochs 1 --data.train scenes:24 --data.val scenes:8", place)
    assert result["run"] == str(place / "runs" / "demo")
    assert (place / "runs" / "demo" / "report" / "predictions.png").exists()


def test_your_own_photos_are_packed_trained_on_evaluated_and_exported(place: Path, packed: list[int]) -> None:
    *_, train, evaluate, export = commands("Your own photos")
    assert packed == [16, 8]
    assert run(shortened(train), place)["weights"] == str(place / "runs" / "photos" / "weights")
    assert {"AP", "AP50", "AR100"} <= run(evaluate, place).keys()
    assert run(export, place)["max_error"] <= 1e-4


def write_all_annotations(place: Path, file: str, numbers: range) -> None:
    """Write scenes and what is known about them as COCO JSON, under the paths of the README."""
    (place / "photos" / "images").mkdir(parents=True, exist_ok=True)
    person = {"id": CLASSES.index("person"), "name": "person", "keypoints": list(KEYPOINT_NAMES)}
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES) if name != "person"]
    images, annotations = [], []
    for number in numbers:
        record = scene(number, size_px=96)
        objects = record.objects
        (place / "photos" / "images" / f"{number:03d}.jpg").write_bytes(record.image)
        labels = [IMAGE_CLASSES[label] for label in record.image_labels]
        images.append({"id": number, "file_name": f"{number:03d}.jpg", "width": 96, "height": 96, "labels": labels})
        for row, (x1, y1, x2, y2) in enumerate(objects.boxes_xyxy.tolist()):
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": number, "category_id": int(objects.labels[row])},
                    **{"bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(objects.areas[row]), "identity": int(objects.identities[row])},
                    "segmentation": {"size": [96, 96], "counts": objects.masks[row].decode()},
                    "keypoints": objects.keypoints[row].reshape(-1).tolist(),
                }
            )
    content = {"images": images, "annotations": annotations, "categories": [*categories, person]}
    (place / "photos" / file).write_text(json.dumps(content))


def test_one_network_learns_all_tasks_and_is_measured_in_each(place: Path) -> None:
    write_all_annotations(place, "train.json", range(16))
    write_all_annotations(place, "val.json", range(16, 24))
    pack_train, pack_val, train, evaluate = commands("One network, many tasks")
    assert run(pack_train, place)["faults"] == {}
    assert run(pack_val, place)["images"] == 8
    trained = run(shortened(train), place)["metrics"]
    found = run(evaluate, place)
    assert {"AP", "segment/AP", "pose/AP", "classify/mAP", "classify/F1", "embed/rank1", "embed/mAP"} <= found.keys()
    assert {name: found[name] for name in trained} == pytest.approx(trained, abs=0.05)


def test_the_same_goes_to_s3_with_two_workers(place: Path, s3: Callable[[], str]) -> None:
    bucket = s3()
    pack_train, pack_val, train = (line.replace("s3://bucket", bucket) for line in commands("S3"))
    assert run(pack_train, place)["output"] == f"{bucket}/train"
    assert run(pack_val, place)["images"] == 8
    assert run(shortened(train), place)["weights"] == f"{bucket}/runs/photos/weights"


def test_published_weights_are_imported_trained_further_and_exported(place: Path, shared: Path, packed: list[int]) -> None:
    """By P6 with an eighth of its widths, in the main branch's own format."""
    shutil.copy(shared / "parity" / "main_p6_narrow.pt", place / "yolor_p6.pt")
    bring_in, train, export = commands("Published weights")
    found = run(f"{bring_in} --check_px 128", place)
    assert found["layout"] == "main" and found["network"].startswith("YOLOR-P6")
    narrow = "--network.stem_width 8 --network.widths 16 32 48 64 80 --data.image_px 128 --optim.epochs 1"
    assert run(f"{train} {narrow}", place)["weights"] == str(place / "runs" / "from-p6" / "weights")
    assert run(f"{export} --image_px 128", place)["format"] == "onnx"


def test_an_ablation_and_a_search_end_in_reports_and_in_a_preset_that_trains(
    place: Path, packed: list[int], ray_cluster: dict[str, str]
) -> None:
    """The search on a cluster, with a Ray Train worker for each trial."""
    ablation, search, train = (line.replace("--optim.epochs 100", "--data.image_px 64") for line in commands(STUDIES))
    found = run(f"{ablation} --optim.epochs 1 --variants pr-multiply --seeds 1", place)
    assert (found["report"], found["trials"]) == (str(place / "runs" / "ablation" / "report.md"), 2)
    assert (place / "runs" / "ablation" / "priors.png").exists()
    found = run(search.replace("--trials 40", "--trials 1 --optim.epochs 1 --cluster.workers 1"), place, ray_cluster)
    assert found["best"] == str(place / "runs" / "search" / "preset.json")
    assert run(f"{train} --cluster.workers 0", place)["run"] == str(place / "runs" / "search-best")


def test_every_job_and_preset_of_the_readme_exists() -> None:
    from yolor_ray.config.presets import PRESETS

    assert {name for name in re.findall(r"jobs/(\w+)\.py", README)} <= {path.stem for path in (ROOT / "jobs").glob("*.py")}
    table = README.split("| preset |", 1)[1].split("\n\n", 1)[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`([\w-]+)`", row)}
    assert named == set(PRESETS)

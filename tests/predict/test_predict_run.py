"""The prediction job in this process: sources, results, faults, and going on where a job was killed."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from colour_engine import CLASSES, CONFIDENCE, draw, write_weights
from packed import pack, square_record
from yolor_ray.config import WorkersConfig
from yolor_ray.data.rle import decode_mask
from yolor_ray.errors import ConfigError, DataError, IntegrityError, NotFoundError, StorageError
from yolor_ray.io import manifest
from yolor_ray.io.storage import list_names
from yolor_ray.predict import run, sources
from yolor_ray.predict.run import predict


@pytest.fixture
def small_parts(monkeypatch):
    """Make a part of each image."""
    monkeypatch.setattr(sources, "PART_IMAGES", 1)


def kill_after(monkeypatch, parts):
    """Kill the job, as far as its files tell, after some parts."""
    write = run._write_part
    written = []

    def write_or_die(output, index, *arguments):
        if len(written) == parts:
            raise KeyboardInterrupt
        written.append(index)
        return write(output, index, *arguments)

    monkeypatch.setattr(run, "_write_part", write_or_die)
    return written


def test_a_folder_is_predicted_with_boxes_in_pixels_of_each_image(settings, rows, tmp_path):
    result = predict(settings())
    assert result == {"images": 5, "detections": 10, "faults": {}, "output": str(tmp_path / "out")}
    found = rows(tmp_path / "out")
    assert list(found) == ["0.png", "1.png", "2.png", "more/3.png", "more/4.png"]
    for number, row in enumerate(found.values()):
        assert (row["width"], row["height"], row["classes"]) == (200, 100, ["red", "blue"])
        expected = [[10 + number, 20, 60, 70], [100, 30 + number, 160, 90]]
        np.testing.assert_allclose(row["boxes_xyxy"], expected, atol=1.6)
        assert row["confidences"] == [CONFIDENCE] * 2
    assert "masks" not in found["0.png"]


def test_only_the_named_classes_are_predicted_and_the_same_command_finds_its_output_finished(settings, rows, tmp_path):
    only_blue = settings(classes=("blue",))
    assert predict(only_blue)["detections"] == predict(only_blue)["detections"] == 5
    assert {name for row in rows(tmp_path / "out").values() for name in row["classes"]} == {"blue"}
    with pytest.raises(ConfigError, match="classes: found 'green', expected some of red, "):
        predict(settings(classes=("blue", "green"), output=str(tmp_path / "other")))


def test_an_output_is_published_with_its_manifest_last(settings, tmp_path):
    predict(settings())
    out = tmp_path / "out"
    assert list_names(str(out)) == ["faults.jsonl", "manifest.json", "part-00000.parquet", "predict.json"]
    assert set(manifest.read_published(str(out))) == {"faults.jsonl", "part-00000.parquet", "predict.json"}
    content = json.loads((out / "predict.json").read_text())
    assert content["weights"]["classes"] == list(CLASSES) and content["confidence"] == "best"
    assert pq.read_table(out / "part-00000.parquet").num_rows == 5


@pytest.mark.parametrize(("confidence", "classes"), [("best", ["blue"]), (0.5, ["red", "blue"]), (0.8, [])])
def test_the_best_confidence_of_each_class_is_the_default(confidence, classes, settings, rows, tmp_path):
    best = {"red": CONFIDENCE + 0.05}
    weights = write_weights(tmp_path / "best", thresholds=best)
    predict(settings(weights=weights) if confidence == "best" else settings(weights=weights, confidence=confidence))
    assert rows(tmp_path / "out")["0.png"]["classes"] == classes


def test_every_task_has_its_columns(settings, rich_weights, rows, tmp_path):
    predict(settings(weights=rich_weights))
    row = rows(tmp_path / "out")["0.png"]
    inside = decode_mask(row["masks"][0].encode(), 200, 100)
    expected = np.zeros((100, 200), bool)
    expected[20:70, 10:60] = True
    assert (inside != expected).mean() < 0.02
    np.testing.assert_allclose(np.reshape(row["keypoints"][0], (2, 3)), [[10, 20, 1], [35, 45, 0.25]], atol=1.6)
    assert np.argmax(row["embeddings"], axis=1).tolist() == [0, 1]
    assert row["image_labels"] == [("day", 0.25), ("night", 0.75)]


def test_a_list_names_images_beside_it_and_elsewhere(settings, photos, rows, tmp_path):
    elsewhere = tmp_path / "elsewhere.png"
    draw((50, 50), [("blue", 10, 10, 40, 40)]).save(elsewhere)
    listed = photos / "list.txt"
    listed.write_text(f"0.png\n\nmore/4.png\r\n{elsewhere}\n0.png\nabsent.png\n")
    result = predict(settings(images=str(listed)))
    assert (result["images"], result["faults"]) == (3, {"missing_image": 1})
    assert list(rows(tmp_path / "out")) == ["0.png", "more/4.png", str(elsewhere)]
    (fault,) = (json.loads(line) for line in (tmp_path / "out" / "faults.jsonl").read_text().splitlines())
    assert fault["image"] == "absent.png" and fault["file"] == str(photos / "absent.png")


def test_a_packed_dataset_and_a_single_image_are_predicted(settings, rows, tmp_path, photos):
    pack(str(tmp_path / "packed"), [[square_record(index) for index in range(70)], [square_record(70)]])
    assert predict(settings(images=str(tmp_path / "packed"), output=str(tmp_path / "a")))["images"] == 71
    assert [path.name for path in sorted((tmp_path / "a").glob("part-*"))] == [f"part-{index:05d}.parquet" for index in range(3)]
    assert list(rows(tmp_path / "a")) == [f"{index:04d}.png" for index in range(71)]
    assert predict(settings(images=str(photos / "1.png"), output=str(tmp_path / "b")))["images"] == 1


def test_the_original_frame_of_a_turned_photo_is_the_displayed_one(settings, write_image, rows, tmp_path):
    write_image(tmp_path / "turned" / "a.jpg", 64, 48, orientation=6)
    predict(settings(images=str(tmp_path / "turned")))
    row = rows(tmp_path / "out")["a.jpg"]
    assert (row["width"], row["height"]) == (48, 64)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(60)])
def test_a_broken_image_is_a_fault_and_the_others_are_predicted(content, settings, photos, rows, tmp_path):
    (photos / "2.png").write_bytes(content)
    result = predict(settings())
    assert (result["images"], result["detections"], result["faults"]) == (4, 8, {"broken_image": 1})
    (fault,) = (json.loads(line) for line in (tmp_path / "out" / "faults.jsonl").read_text().splitlines())
    assert fault["file"] == str(photos / "2.png") and fault["image"] == "2.png"
    assert list(rows(tmp_path / "out")) == ["0.png", "1.png", "more/3.png", "more/4.png"]


def test_a_truncated_image_and_a_folder_in_place_of_an_image_are_faults(settings, photos, write_image):
    write_image(photos / "5.jpg", 640, 480)
    data = (photos / "5.jpg").read_bytes()
    (photos / "5.jpg").write_bytes(data[: len(data) // 2])
    (photos / "list.txt").write_text("0.png\n5.jpg\nmore\n")
    result = predict(settings(images=str(photos / "list.txt")))
    assert (result["images"], result["faults"]) == (1, {"broken_image": 2})


def test_images_that_are_all_broken_are_refused_and_leave_nothing(settings, photos, tmp_path):
    for path in photos.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"found no usable image, expected at least one; 5 faults: broken_image 5; for example .*0\.png"):
        predict(settings())
    assert list_names(str(tmp_path / "out")) == []


def test_a_folder_that_vanishes_is_an_error_and_no_fault(settings, photos, tmp_path):
    (part,) = sources.list_parts(str(photos))
    photos.rename(tmp_path / "moved")
    with pytest.raises(NotFoundError):
        list(part.read())


def test_a_part_of_a_dataset_carries_its_shard_alone(squares):
    parts = sources.list_parts(squares.url)
    assert [part.group.index for part in parts] == [0, 1, 0]
    assert all([shard.name for shard in part.dataset.shards] == [part.group.shard] for part in parts)
    assert [image.name for part in parts for image in part.read()] == [f"{number:04d}.png" for number in range(100)]


@pytest.mark.usefixtures("small_parts")
def test_a_killed_job_goes_on_with_the_parts_that_are_left(settings, rows, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            predict(settings())
    out = tmp_path / "out"
    assert not manifest.is_published(str(out))
    first = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert len(first) == 2
    with monkeypatch.context() as patch:
        written = kill_after(patch, 99)
        result = predict(settings())
    assert written == [2, 3, 4]
    assert (result["images"], result["detections"]) == (5, 10)
    assert {name: (out / name).stat().st_mtime_ns for name in first} == first
    assert len(rows(out)) == 5 and set(list_names(str(out))) == {*manifest.read_published(str(out)), "manifest.json"}


@pytest.mark.usefixtures("small_parts")
def test_faults_of_parts_before_the_kill_are_kept(settings, photos, monkeypatch):
    (photos / "0.png").write_bytes(b"broken")
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            predict(settings())
    assert predict(settings())["faults"] == {"broken_image": 1}


@pytest.mark.usefixtures("small_parts")
def test_an_image_that_changed_after_the_kill_is_predicted_again(settings, photos, rows, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            predict(settings())
    draw((300, 100), [("red", 10, 20, 60, 70)]).save(photos / "0.png")
    written = kill_after(monkeypatch, 99)
    predict(settings())
    assert written == [0, 2, 3, 4]
    assert rows(tmp_path / "out")["0.png"]["width"] == 300


def test_a_file_of_a_part_without_its_progress_is_written_again(settings, rows, tmp_path):
    settings = settings()
    out = Path(settings.output)
    out.mkdir()
    with pytest.raises(DataError, match=r"found part-00000\.parquet, expected an empty folder or unfinished predictions"):
        (out / "part-00000.parquet").write_bytes(b"cut")
        predict(settings)
    (out / "part-00000.parquet").unlink()
    predict(settings)
    for name in ("manifest.json", "faults.jsonl"):
        (out / name).unlink()
    (out / "part-00000.parquet").write_bytes(b"cut")
    content = json.loads((out / "predict.json").read_text())
    del content["parts"]
    (out / "predict.json").write_text(json.dumps(content))
    assert predict(settings)["images"] == 5 and len(rows(out)) == 5


@pytest.mark.parametrize(
    "change", [{"confidence": 0.5}, {"iou": 0.7}, {"max_detections": 5}, {"classes": ("red",)}, {"tile": 64}, {"precision": "bfloat16"}]
)
@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_against_the_same_output_are_refused(change, finished, settings, monkeypatch, tmp_path):
    if not finished:
        kill_after(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt) if not finished else pytest.MonkeyPatch.context():
        predict(settings())
    ((name, value),) = change.items()
    wanted = re.escape(json.dumps(value))
    expected = rf"found predictions with {name} = .*, expected {wanted} as in this command; give the same settings, or another"
    with pytest.raises(ConfigError, match=expected):
        predict(settings(**change))


def test_other_weights_or_images_against_the_same_output_are_refused(settings, tmp_path, photos):
    predict(settings())
    with pytest.raises(ConfigError, match="found predictions with weights = "):
        predict(settings(weights=write_weights(tmp_path / "others", seed=1)))
    with pytest.raises(ConfigError, match="found predictions with images_url = "):
        predict(settings(images=str(photos / "more")))
    (photos / "4.png").write_bytes((photos / "0.png").read_bytes())
    with pytest.raises(DataError, match=r"found finished predictions of 5 images, .* whose images have changed; take another output"):
        predict(settings())


def test_a_finished_output_gets_the_files_that_it_lacks_without_another_prediction(settings, photos, tmp_path, monkeypatch):
    (photos / "2.png").write_bytes(b"broken")
    first = predict(settings())
    monkeypatch.setattr(run, "Predictor", None)
    assert predict(settings()) == first
    assert predict(settings(format="coco")) == first
    out = str(tmp_path / "out")
    assert len(json.loads(manifest.read_published(out)["coco.json"])["images"]) == 4
    assert predict(settings()) == first
    assert "coco.json" in manifest.read_published(out)
    Path(out, "manifest.json").unlink()
    assert predict(settings()) == first and manifest.is_published(out)


def test_an_output_with_something_else_or_inside_of_the_images_is_refused(settings, photos, weights):
    with pytest.raises(DataError, match=r"found config\.json, .*, expected an empty folder"):
        predict(settings(output=weights))
    for inside in (photos, photos / "more" / "out"):
        with pytest.raises(ConfigError, match="inside of the images, expected a folder elsewhere"):
            predict(settings(output=str(inside)))


def test_images_that_are_not_there_are_refused(settings, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "page.pdf").write_bytes(b"%PDF-1.7 and so on")
    for name, error, message in (
        ("absent", NotFoundError, "not found; expected a folder of images, a list, a packed dataset, a video or an image"),
        ("empty", DataError, "found no image file"),
        ("empty.txt", DataError, "found no line"),
        ("binary.txt", DataError, "no UTF-8 text"),
        ("page.pdf", DataError, "found a file of another kind, expected an image, a list with the suffix"),
    ):
        with pytest.raises(error, match=message):
            predict(settings(images=str(tmp_path / name)))
        assert not (tmp_path / "out").exists()


def test_a_damaged_part_is_named_by_its_content(settings, tmp_path):
    predict(settings())
    (tmp_path / "out" / "part-00000.parquet").write_bytes(b"damaged")
    with pytest.raises((IntegrityError, StorageError), match="found 7 bytes"):
        predict(settings(format="coco"))


def test_many_images_give_parts_in_order(settings, photos, monkeypatch, rows, tmp_path):
    monkeypatch.setattr(sources, "PART_IMAGES", 2)
    for number in range(10, 29):
        draw((60, 40), [("red", 5, 5, 30, 30)] * (number % 2)).save(photos / f"{number}.png")
    result = predict(settings(batch=3))
    assert (result["images"], result["detections"]) == (24, 19)
    assert list(rows(tmp_path / "out")) == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert [len(rows(tmp_path / "out", parts=count)) for count in (1, 2, 12)] == [2, 4, 24]


def test_parts_of_a_list_end_at_the_size_of_its_images(photos, monkeypatch):
    (photos / "list.txt").write_text("0.png\n1.png\n2.png\n")
    monkeypatch.setattr(sources, "PART_BYTES", 2 * (photos / "0.png").stat().st_size + 9)
    assert [len(part.files) for part in sources.list_parts(str(photos / "list.txt"))] == [2, 1]
    (photos / "bucket.txt").write_text("".join(f"s3://bucket/{number}.png\n" for number in range(40)))
    monkeypatch.undo()
    assert [len(part.files) for part in sources.list_parts(str(photos / "bucket.txt"))] == [16, 16, 8]


@pytest.mark.parametrize(
    ("workers", "gpu", "cpus", "parts", "readers"),
    [
        ("1", False, 1, 99, 1),
        ("2", False, 2, 99, 1),
        ("2", False, 64, 99, 32),
        ("1-100", False, 4, 99, 50),
        ("2", False, 64, 3, 3),
        ("8", True, 64, 99, None),
    ],
)
def test_readers_are_limited_by_workers_and_cpus_and_free_beside_gpus(workers, gpu, cpus, parts, readers):
    assert run.most_readers(WorkersConfig(workers=workers, gpu=gpu), cpus, parts) == readers

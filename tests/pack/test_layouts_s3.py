"""A folder in S3 is recognised and packed like a local one."""

from exports import CLASSES, objects_of, packed_objects, write_images, write_labels
from yolor_ray.config import PackAutoConfig
from yolor_ray.io import storage
from yolor_ray.pack.run import pack


def test_a_roboflow_export_in_s3_is_packed(s3, tmp_path, write_image):
    bucket = s3()
    for split, numbers in (("train", range(4)), ("valid", range(4, 6))):
        write_images(write_image, tmp_path / split / "images", numbers)
        write_labels(tmp_path / split / "labels", numbers)
    (tmp_path / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: {list(CLASSES)}\n")
    for file in tmp_path.rglob("*.*"):
        storage.write_bytes(storage.join(bucket, "export", str(file.relative_to(tmp_path))), file.read_bytes())
    result = pack(PackAutoConfig(folder=f"{bucket}/export/", output=f"{bucket}/packed"))
    assert {split: part["output"] for split, part in result["splits"].items()} == {s: f"{bucket}/packed/{s}" for s in ("train", "val")}
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        assert packed_objects(f"{bucket}/packed/{split}", CLASSES) == {number: objects_of(number) for number in numbers}

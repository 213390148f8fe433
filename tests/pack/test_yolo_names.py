"""Class names of YOLO datasets, from text and YAML files."""

import pytest

from yolor_ray.errors import DataError, StorageError
from yolor_ray.pack.annotations.yolo.names import read_names

ODD_NAMES = [
    "02146",
    "21008",
    "yes",
    "no",
    "on",
    "1e3",
    "null",
    "~",
    "true",
    "0x10",
    "1_000",
    "2024-01-31",
    "3.0",
    ".5",
    "0o7",
    "12:30:45",
    "=",
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n.txt", "\ufeffcat\r\nbig dog\r\n\r\n"),
        ("n", "cat\nbig dog"),
        ("n.yaml", "nc: 2\nnames: [cat, big dog]\n"),
        ("n.yaml", "\ufeffnc: 2  # classes\nnames:\n- cat\n- big dog\n"),
        ("n.yml", "path: x\nnames:\n  1: big dog\n  0: cat\n"),
        ("n.yaml", "names: {'0': cat, \"1\": 'big dog'}"),
    ],
)
def test_class_names_are_read_from_text_or_yaml(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    assert read_names(str(tmp_path / name)).classes == ("cat", "big dog")


@pytest.mark.parametrize("layout", ["names: [{}]", "names: {{0: {}}}", "names:\n- {}\n", "names: ['{}']"])
@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_in_yaml_stay_as_written(tmp_path, layout, name):
    (tmp_path / "n.yaml").write_text(layout.format(name))
    assert read_names(str(tmp_path / "n.yaml")).classes == (name,)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n.txt", "", "found class names .* each once and none empty"),
        ("n.txt", "cat\ncat\n", "each once"),
        ("n.txt", "cat\n\ndog\n", "none empty"),
        ("n.txt", b"\xff", "bytes that are no UTF-8 text"),
        ("n.txt", "cat\0dog", "the control character"),
        ("n.yaml", "nc: 2\n", "no names: among the keys nc"),
        ("n.yaml", "names: {0: a, 2: b}", "names with the keys 0, 2, expected 0 to 1"),
        ("n.yaml", "names: {1: cat, 2: dog}", "names with the keys 1, 2, expected 0 to 1"),
        ("n.yaml", "names: {0: a, 00: b}", "names with the keys 0, 00, expected 0 to 1"),
        ("n.yaml", "names: {cat: 0, dog: 1}", "names with the keys cat, dog, expected 0 to 1"),
        ("n.yaml", "names: {0: a, 0: b}", "key '0' a second time in names"),
        ("n.yaml", "names: [a]\nnames: [b]", "key 'names' a second time in the top level, in line 2"),
        ("n.yaml", "nc: 3\nnames: [a, b]", "nc: 3 and 2 names"),
        ("n.yaml", "nc: two\nnames: [a, b]", "'two' as nc"),
        ("n.yaml", "names: [a", "no valid YAML"),
        ("n.yaml", "names: [a]\n---\nnames: [b]", "no valid YAML"),
        ("n.yaml", "names: [a, [b]]", "a list as a class name"),
        ("n.yaml", "names: a, b", "'a, b' as names"),
        ("n.yaml", "names: []", "each once and none empty"),
        ("n.yaml", "names: !!python/object/apply:os.system [true]", "tag tag:yaml.org,2002:python"),
        ("n.yaml", "names: [!!python/name:os.system x]", "tag tag:yaml.org,2002:python"),
        ("n.yaml", "[" * 3000, "no valid YAML"),
        ("n.yaml", "just text", "no mapping at the top level"),
        ("n.json", '{"categories": []}', "found JSON; COCO annotations"),
        ("n.json", "cat\ndog", "found JSON"),
        ("n.txt", '\n{"0": "cat"}', "found JSON"),
        ("n", '["cat", "dog"]', "found JSON"),
        ("n.xml", "<annotation/>", "found XML; VOC annotations"),
        ("n.txt", "<annotation>\n<object/>\n</annotation>", "found XML"),
        ("n.txt", "0: cat\n1: dog\n", "found numbers in lines such as '0: cat', expected the names alone"),
        ("n.txt", "# my classes\ncat\ndog\n", "found the comment '# my classes'"),
        ("n.yaml", "names: coco.names\n", "found 'coco.names' as names, expected a list of names"),
        ("n.txt", "nc: 1\nnames: [cat]\n", r"found YAML; its name must end in \.yaml"),
        ("n.txt", "0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n", "found annotations such as '0 0.5 0.5 0.1 0.1'"),
    ],
)
def test_bad_class_names_are_refused_by_name_and_kind(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"/{name}: found .*{message}|/{name}: {message}") as refused:
        read_names(str(tmp_path / name))
    assert "expected" in str(refused.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_an_image_is_refused_as_class_names(tmp_path, write_image, suffix):
    path = write_image(tmp_path / f"n.{suffix}")
    with pytest.raises(DataError, match=rf"n\.{suffix}: found an image \(\w+\), expected one class name per line"):
        read_names(str(path))


def test_a_folder_is_refused_as_class_names(tmp_path):
    with pytest.raises(StorageError, match="cannot read it"):
        read_names(str(tmp_path))


def test_names_that_look_like_markup_are_names(tmp_path):
    (tmp_path / "n.txt").write_text("[unknown]\n<none>\n{x}\nnames of cats\n12\n")
    assert read_names(str(tmp_path / "n.txt")).classes == ("[unknown]", "<none>", "{x}", "names of cats", "12")

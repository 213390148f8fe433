import json
import os
from pathlib import Path

import pytest

from yolor_ray.errors import ConfigError, IntegrityError, NotFoundError, StorageError
from yolor_ray.io import filesystem, manifest, retry, storage


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "a folder") if request.param == "local" else storage.join(request.getfixturevalue("s3")(), "a folder")


def test_what_is_written_is_read_back(folder):
    for data in (b"", b"x", os.urandom(7_000_000)):
        storage.write_bytes(storage.join(folder, "deep", "file.bin"), data)
        assert storage.read_bytes(storage.join(folder, "deep", "file.bin")) == data


def test_a_large_file_arrives_whole_by_multipart(s3):
    data = os.urandom(1 << 20) * 23
    url = storage.join(s3(), "large.bin")
    storage.write_bytes(url, data)
    assert storage.read_bytes(url) == data


def test_names_are_listed_sorted_and_only_one_level_deep(folder):
    for name in ("b", "a", "sub/c"):
        storage.write_bytes(storage.join(folder, name), b"1")
    assert storage.list_names(folder) == ["a", "b", "sub"]


def test_an_absent_folder_lists_nothing_and_does_not_exist(folder):
    assert storage.list_names(storage.join(folder, "none")) == []
    assert not storage.exists(storage.join(folder, "none"))


def test_deleting_removes_a_file_or_a_folder_and_absent_is_fine(folder):
    for name in ("keep", "sub/a", "sub/deeper/b"):
        storage.write_bytes(storage.join(folder, name), b"1")
    storage.delete(storage.join(folder, "sub"))
    storage.delete(storage.join(folder, "sub"))
    assert storage.list_names(folder) == ["keep"]
    storage.delete(storage.join(folder, "keep"))
    assert not storage.exists(storage.join(folder, "keep"))


def test_a_whole_bucket_or_root_folder_is_never_deleted(s3):
    for url in (s3(), "/", "/tmp"):
        with pytest.raises(StorageError, match="expected something inside one"):
            storage.delete(url)


def test_a_missing_file_is_named(folder):
    url = storage.join(folder, "none.bin")
    with pytest.raises(StorageError, match=r"none\.bin: not found"):
        storage.read_bytes(url)


def test_a_published_folder_verifies(folder):
    files = {"model.safetensors": os.urandom(1000), "config.json": b"{}"}
    assert not manifest.is_published(folder)
    manifest.publish(folder, files)
    assert manifest.is_published(folder)
    assert manifest.read_published(folder) == files
    assert manifest.read_published(folder, ["config.json"]) == {"config.json": b"{}"}


def test_a_published_file_that_changed_is_refused_by_name(folder):
    manifest.publish(folder, {"a.bin": b"12345"})
    storage.write_bytes(storage.join(folder, "a.bin"), b"12346")
    with pytest.raises(StorageError, match=r"a\.bin: found 5 bytes with SHA-256 .* expected 5 and"):
        manifest.read_published(folder)


def test_a_listed_file_that_is_absent_is_damage_and_an_absent_manifest_is_not(folder):
    manifest.publish(folder, {"a.bin": b"1", "b.bin": b"2"})
    storage.delete(storage.join(folder, "a.bin"))
    with pytest.raises(IntegrityError, match=r"a folder/a\.bin: not found, expected it as manifest\.json lists it"):
        manifest.read_published(folder)
    assert manifest.read_published(folder, ["b.bin"]) == {"b.bin": b"2"}
    storage.delete(storage.join(folder, "manifest.json"))
    with pytest.raises(NotFoundError, match=r"a folder/manifest\.json: not found"):
        manifest.read_published(folder)


def test_a_file_that_the_manifest_does_not_list_is_refused(folder):
    manifest.publish(folder, {"a.bin": b"1"})
    with pytest.raises(StorageError, match=r"found a\.bin in manifest\.json, expected also b\.bin"):
        manifest.read_published(folder, ["b.bin"])


def test_a_damaged_manifest_is_refused(folder):
    for text in (b"", b"[]", b'{"files": {"a": 1}}', b'{"files": {"a": {"bytes": 1}}}'):
        storage.write_bytes(storage.join(folder, "manifest.json"), text)
        with pytest.raises(StorageError, match=r"manifest\.json: found no manifest"):
            manifest.read_published(folder)


def test_publishing_again_leaves_no_moment_in_which_old_and_new_count_as_one(tmp_path, monkeypatch):
    manifest.publish(str(tmp_path / "w"), {"a": b"old", "b": b"old"})
    seen = []
    write = storage.write_bytes

    def recorded(url, data):
        seen.append((Path(url).name, manifest.is_published(str(tmp_path / "w"))))
        write(url, data)

    monkeypatch.setattr(storage, "write_bytes", recorded)
    manifest.publish(str(tmp_path / "w"), {"a": b"new", "b": b"new"})
    assert seen == [("a", False), ("b", False), ("manifest.json", False)]
    assert manifest.read_published(str(tmp_path / "w")) == {"a": b"new", "b": b"new"}


@pytest.mark.parametrize("name", ["../a", "/a", "x/../../a", "manifest.json"])
def test_a_published_name_stays_inside_the_folder(tmp_path, name):
    with pytest.raises(StorageError, match="expected a plain one"):
        manifest.publish(str(tmp_path), {name: b""})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_dies_leaves_the_old_file_and_no_visible_rest(tmp_path, monkeypatch):
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match=r"cannot write it: .*No space left"):
        storage.write_bytes(str(target), b"new")
    monkeypatch.setattr(os, "fsync", real)
    assert target.read_bytes() == b"old"
    assert storage.list_names(str(tmp_path)) == ["file"]


def test_a_temporary_rest_of_a_killed_write_is_not_listed(tmp_path):
    (tmp_path / f".{'a' * 32}.tmp").write_bytes(b"half")
    assert storage.list_names(str(tmp_path)) == []


def test_file_urls_and_relative_paths_mean_local_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.write_bytes(f"file://{tmp_path}/with%20space", b"1")
    assert storage.read_bytes("with space") == b"1"
    assert storage.absolute("with space") == str(tmp_path / "with space")
    assert storage.absolute("s3://bucket/a") == "s3://bucket/a"


@pytest.mark.parametrize(
    "url", ["", "https://host/x?X-Amz-Signature=canary", "gs://b/k", "file://host/x", "s3://", "s3://key:canary@bucket/x", "s3://b:1/x"]
)
def test_other_urls_are_refused_without_repeating_what_may_be_secret(url):
    with pytest.raises(ConfigError, match="expected") as caught:
        filesystem.filesystem(url)
    assert "canary" not in str(caught.value)


def test_wrong_keys_fail_fast_and_show_no_secret(s3, monkeypatch):
    url = storage.join(s3(), "x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canaryid1234")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canarysecret1234")
    with pytest.raises(StorageError, match="cannot read it") as caught:
        storage.read_bytes(url)
    assert url in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_missing_bucket_is_an_error_that_names_the_url(s3):
    s3()
    with pytest.raises(StorageError, match="s3://nobody-made-this/x"):
        storage.write_bytes("s3://nobody-made-this/x", b"1")


def test_a_bad_endpoint_is_refused_before_any_request(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL"):
        filesystem.filesystem("s3://bucket/x")


def test_the_manifest_holds_size_and_hash_of_each_file(tmp_path):
    manifest.publish(str(tmp_path), {"b": b"22", "a": b"1"})
    files = json.loads((tmp_path / "manifest.json").read_bytes())["files"]
    assert {name: entry["bytes"] for name, entry in files.items()} == {"a": 1, "b": 2}
    assert files["a"]["sha256"] == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"


def test_a_failure_of_a_local_file_is_told_at_once(tmp_path):
    calls = []

    def failing():
        calls.append(1)
        raise OSError(5, "Input/output error")

    with pytest.raises(StorageError, match=r"cannot read it: .*Input/output error"):
        filesystem.attempt(str(tmp_path / "x"), "read", failing)
    assert len(calls) == 1


def test_no_secret_is_in_the_log_of_a_retry(s3, monkeypatch, caplog):
    url = storage.join(s3(), "x")
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    failures = [OSError(f"AWS Error NETWORK_CONNECTION: sent {secret}\nto nobody")]

    def act():
        if failures:
            raise failures.pop()
        return 1

    assert filesystem.attempt(url, "read", act) == 1
    assert "reason=AWS Error NETWORK_CONNECTION: sent <AWS_SECRET_ACCESS_KEY> to nobody" in caplog.text

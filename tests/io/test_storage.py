"""Files and published folders, on a local disk and on a real S3 server."""

import json
import os
from pathlib import Path

import pytest

from yolor_ray.errors import ConfigError, IntegrityError, NotFoundError, StorageError
from yolor_ray.io import filesystem, manifest, retry, storage


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "a folder") if request.param == "local" else storage.join(request.getfixturevalue("s3")(), "a folder")


def test_written_data_are_read_back(folder):
    for data in (b"", b"x", os.urandom(7_000_000)):
        storage.write_bytes(storage.join(folder, "deep", "file.bin"), data)
        assert storage.read_bytes(storage.join(folder, "deep", "file.bin")) == data


def test_the_start_of_a_file_is_read_alone(folder):
    url = storage.join(folder, "file.bin")
    storage.write_bytes(url, b"0123456789")
    assert [storage.read_start(url, size) for size in (0, 4, 10, 99)] == [b"", b"0123", b"0123456789", b"0123456789"]


def test_a_large_file_is_complete_after_a_multipart_upload(s3):
    data = os.urandom(1 << 20) * 23
    url = storage.join(s3(), "large.bin")
    storage.write_bytes(url, data)
    assert storage.read_bytes(url) == data


def test_names_of_one_level_are_listed_sorted(folder):
    for name in ("b", "a", "sub/c"):
        storage.write_bytes(storage.join(folder, name), b"1")
    assert storage.list_names(folder) == ["a", "b", "sub"]


def test_an_absent_folder_lists_nothing_and_does_not_exist(folder):
    assert storage.list_names(storage.join(folder, "none")) == []
    assert not storage.exists(storage.join(folder, "none"))


def test_a_file_or_a_folder_is_deleted_and_an_absent_one_is_no_error(folder):
    for name in ("keep", "sub/a", "sub/deeper/b"):
        storage.write_bytes(storage.join(folder, name), b"1")
    storage.delete(storage.join(folder, "sub"))
    storage.delete(storage.join(folder, "sub"))
    assert storage.list_names(folder) == ["keep"]
    storage.delete(storage.join(folder, "keep"))
    assert not storage.exists(storage.join(folder, "keep"))


def test_a_bucket_or_a_top_level_folder_is_never_deleted(s3):
    for url in (s3(), "/", "/tmp"):
        with pytest.raises(StorageError, match="expected a file or folder inside one"):
            storage.delete(url)


def test_the_error_for_an_absent_file_has_its_url(folder):
    url = storage.join(folder, "none.bin")
    with pytest.raises(StorageError, match=r"none\.bin: not found"):
        storage.read_bytes(url)


def test_a_published_folder_is_read_back(folder):
    files = {"model.safetensors": os.urandom(1000), "config.json": b"{}"}
    assert not manifest.is_published(folder)
    manifest.publish(folder, files)
    assert manifest.is_published(folder)
    assert manifest.read_published(folder) == files
    assert manifest.read_published(folder, ["config.json"]) == {"config.json": b"{}"}


def test_a_published_file_that_changed_is_refused_with_its_name(folder):
    manifest.publish(folder, {"a.bin": b"12345"})
    storage.write_bytes(storage.join(folder, "a.bin"), b"12346")
    with pytest.raises(StorageError, match=r"a\.bin: found 5 bytes with SHA-256 .* expected 5 and"):
        manifest.read_published(folder)


def test_an_absent_file_is_an_integrity_error_and_an_absent_manifest_a_not_found_error(folder):
    manifest.publish(folder, {"a.bin": b"1", "b.bin": b"2"})
    storage.delete(storage.join(folder, "a.bin"))
    with pytest.raises(IntegrityError, match=r"a folder/a\.bin: not found, expected it as manifest\.json lists it"):
        manifest.read_published(folder)
    assert manifest.read_published(folder, ["b.bin"]) == {"b.bin": b"2"}
    storage.delete(storage.join(folder, "manifest.json"))
    with pytest.raises(NotFoundError, match=r"a folder/manifest\.json: not found"):
        manifest.read_published(folder)


def test_a_folder_that_is_made_while_it_is_listed_lists_nothing(tmp_path, monkeypatch):
    """pyarrow looks for a folder that it could not open once more, and raises the first failure if the folder is there now."""

    class Racing:
        def get_file_info(self, selector):
            raise FileNotFoundError(f"Cannot list directory '{selector.base_dir}'")

    monkeypatch.setattr(storage, "filesystem", lambda url: (Racing(), url))
    assert storage.list_names(str(tmp_path / "new")) == []


def test_a_file_that_the_manifest_does_not_list_is_refused(folder):
    manifest.publish(folder, {"a.bin": b"1"})
    with pytest.raises(StorageError, match=r"found a\.bin in manifest\.json, expected also b\.bin"):
        manifest.read_published(folder, ["b.bin"])


def test_a_damaged_manifest_is_refused(folder):
    for text in (b"", b"[]", b'{"files": {"a": 1}}', b'{"files": {"a": {"bytes": 1}}}'):
        storage.write_bytes(storage.join(folder, "manifest.json"), text)
        with pytest.raises(StorageError, match=r"manifest\.json: found no manifest"):
            manifest.read_published(folder)


def test_a_folder_has_no_manifest_while_it_is_published_again(tmp_path, monkeypatch):
    manifest.publish(str(tmp_path / "w"), {"a": b"old", "b": b"old"})
    states = []

    def record_and_write(url, data):
        states.append((Path(url).name, manifest.is_published(str(tmp_path / "w"))))
        storage.write_bytes(url, data)

    monkeypatch.setattr(manifest, "write_bytes", record_and_write)
    manifest.publish(str(tmp_path / "w"), {"a": b"new", "b": b"new"})
    assert states == [("a", False), ("b", False), ("manifest.json", False)]
    assert manifest.read_published(str(tmp_path / "w")) == {"a": b"new", "b": b"new"}


@pytest.mark.parametrize("name", ["../a", "/a", "x/../../a", "manifest.json"])
def test_a_file_name_outside_the_published_folder_is_refused(tmp_path, name):
    with pytest.raises(StorageError, match="expected a plain one"):
        manifest.publish(str(tmp_path), {name: b""})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_temporary_file(tmp_path, monkeypatch):
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match=r"cannot write it: .*No space left"):
        storage.write_bytes(str(target), b"new")
    monkeypatch.setattr(os, "fsync", fsync)
    assert target.read_bytes() == b"old"
    assert storage.list_names(str(tmp_path)) == ["file"]


def test_the_temporary_file_of_a_killed_write_is_not_listed(tmp_path):
    (tmp_path / f".{'a' * 32}.tmp").write_bytes(b"half")
    assert storage.list_names(str(tmp_path)) == []


def test_file_urls_and_relative_paths_are_local_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.write_bytes(f"file://{tmp_path}/with%20space", b"1")
    assert storage.read_bytes("with space") == b"1"
    assert storage.absolute("with space") == str(tmp_path / "with space")
    assert storage.absolute("s3://bucket/a") == "s3://bucket/a"


@pytest.mark.parametrize(
    "url", ["", "https://host/x?X-Amz-Signature=canary", "gs://b/k", "file://host/x", "s3://", "s3://key:canary@bucket/x", "s3://b:1/x"]
)
def test_other_urls_are_refused_without_their_secrets(url):
    with pytest.raises(ConfigError, match="expected") as caught:
        filesystem.filesystem(url)
    assert "canary" not in str(caught.value)


def test_the_error_for_wrong_keys_has_no_secret(s3, monkeypatch):
    url = storage.join(s3(), "x")
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canaryid1234")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canarysecret1234")
    with pytest.raises(StorageError, match="cannot read it") as caught:
        storage.read_bytes(url)
    assert url in str(caught.value)
    assert "canary" not in str(caught.value)


def test_the_error_for_an_absent_bucket_has_the_url(s3):
    s3()
    with pytest.raises(StorageError, match="s3://nobody-made-this/x"):
        storage.write_bytes("s3://nobody-made-this/x", b"1")


def test_a_malformed_endpoint_is_refused_before_any_request(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL"):
        filesystem.filesystem("s3://bucket/x")


def test_the_manifest_holds_size_and_hash_of_each_file(tmp_path):
    manifest.publish(str(tmp_path), {"b": b"22", "a": b"1"})
    files = json.loads((tmp_path / "manifest.json").read_bytes())["files"]
    assert {name: entry["bytes"] for name, entry in files.items()} == {"a": 1, "b": 2}
    assert files["a"]["sha256"] == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"


def test_a_failure_of_a_local_file_is_not_retried(tmp_path):
    calls = []

    def fail():
        calls.append(1)
        raise OSError(5, "Input/output error")

    with pytest.raises(StorageError, match=r"cannot read it: .*Input/output error"):
        filesystem.call_with_retries(str(tmp_path / "x"), "read", fail)
    assert len(calls) == 1


def test_no_secret_is_in_the_log_of_a_retry(s3, monkeypatch, caplog):
    url = storage.join(s3(), "x")
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    failures = [OSError(f"AWS Error NETWORK_CONNECTION: sent {secret}\nto nobody")]

    def fail_once():
        if failures:
            raise failures.pop()
        return 1

    assert filesystem.call_with_retries(url, "read", fail_once) == 1
    assert "reason='AWS Error NETWORK_CONNECTION: sent <AWS_SECRET_ACCESS_KEY> to nobody'" in caplog.text


def test_content_that_does_not_verify_is_read_once_from_a_local_file(tmp_path):
    (tmp_path / "x").write_bytes(b"data")
    contents = []

    def refuse(data):
        contents.append(data)
        raise IntegrityError("found data, expected other data")

    with pytest.raises(IntegrityError, match=r"x: found data, expected other data"):
        storage.read_bytes(str(tmp_path / "x"), refuse)
    assert contents == [b"data"]

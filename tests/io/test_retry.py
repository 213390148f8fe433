"""Retries of operations on S3, against a real S3 server behind a proxy that makes faults."""

import os

import numpy as np
import pyarrow as pa
import pytest

from yolor_ray.data.shards import dataset as shards
from yolor_ray.data.shards.records import Record, objects_from_boxes
from yolor_ray.errors import StorageError
from yolor_ray.io import filesystem, manifest, retry, storage
from yolor_ray.io.retry import FailureKind, RetryBudget, failure_kind

ENDLESS = 10_000


def count_retries(caplog) -> int:
    return sum("event=storage_retry" in record.getMessage() for record in caplog.records)


# The SDK waits for whole seconds, so that fewer requests meet faults.
@pytest.mark.parametrize(("sdk_attempts", "share", "minimum"), [(1, 0.6, 20), (filesystem.SDK_ATTEMPTS, 0.3, 3)], ids=["ours", "shipped"])
def test_every_operation_outlasts_bursts_of_slow_down(sdk_attempts, share, minimum, url, faulty, caplog, monkeypatch):
    monkeypatch.setattr(filesystem, "SDK_ATTEMPTS", sdk_attempts)
    faulty.set_faults(share_503=share)
    large = os.urandom(12_000_000)
    storage.write_bytes(url, large)
    assert storage.read_bytes(url) == large
    folder = url.rsplit("/", 1)[0]
    manifest.publish(storage.join(folder, "set"), {"a": b"1", "b": b"22"})
    assert manifest.read_published(storage.join(folder, "set")) == {"a": b"1", "b": b"22"}
    storage.delete(url)
    assert storage.list_names(folder) == ["set"]
    assert not storage.exists(url)
    assert faulty.struck["share_503"] > minimum
    assert count_retries(caplog)


def test_a_folder_is_deleted_while_half_of_the_requests_fail(url, faulty, monkeypatch):
    folder = url.rsplit("/", 1)[0]
    for number in range(8):
        storage.write_bytes(storage.join(folder, *("deep" for _ in range(number % 2)), str(number)), b"1")
    monkeypatch.setattr(retry, "BUDGET_S", 8.0)
    faulty.set_faults(share_503=0.5)
    storage.delete(folder)
    faulty.set_faults(share_503=0)
    assert storage.list_names(folder) == []


@pytest.mark.parametrize("fault", ["reset_next", "short_next"])
def test_an_object_that_is_cut_in_the_middle_is_read_again(fault, url, faulty, written, caplog):
    faulty.set_faults(**{fault: 2})
    assert storage.read_bytes(url) == written
    assert faulty.struck[fault] == 2
    assert f"event=storage_retry url={url} attempt=1 wait_s=0.0 reason='" in caplog.text
    assert "NETWORK_CONNECTION" in caplog.text


def test_a_store_that_is_down_for_a_while_is_retried(url, faulty, written):
    faulty.set_faults(down_s=0.5)
    assert storage.read_bytes(url) == written
    assert faulty.struck["down_s"] > 2


def test_a_store_that_stays_down_fails_when_the_budget_is_spent(url, faulty, written, monkeypatch):
    monkeypatch.setattr(retry, "BUDGET_S", 0.2)
    faulty.set_faults(down_s=ENDLESS)
    with pytest.raises(StorageError, match=rf"{url}: cannot write it after \d+ attempts in \d+ s: .*NETWORK_CONNECTION"):
        storage.write_bytes(url, b"1")


def test_a_refused_operation_is_attempted_a_few_times(url, faulty, written):
    faulty.set_faults(forbid_next=retry.REFUSED_ATTEMPTS - 1)
    assert storage.read_bytes(url) == written
    faulty.set_faults(forbid_next=ENDLESS)
    before = faulty.struck["requests"]
    with pytest.raises(StorageError, match=rf"cannot read it after {retry.REFUSED_ATTEMPTS} attempts in \d+ s: .*ACCESS_DENIED"):
        storage.read_bytes(url)
    assert faulty.struck["requests"] - before == retry.REFUSED_ATTEMPTS


@pytest.mark.parametrize(("fault", "message"), [("forbid_next", "ACCESS_DENIED"), ("expire_next", "HTTP status 400")])
def test_the_first_operation_on_a_bucket_has_the_same_attempts_as_later_ones(fault, message, url, faulty):
    faulty.set_faults(**{fault: ENDLESS})
    for _ in range(2):
        before = faulty.struck["requests"]
        with pytest.raises(StorageError, match=rf"{url}: cannot read it after {retry.REFUSED_ATTEMPTS} attempts in \d+ s: .*{message}"):
            storage.read_bytes(url)
        assert faulty.struck["requests"] - before == retry.REFUSED_ATTEMPTS


def test_the_first_operation_on_a_bucket_has_the_long_time_budget(url, faulty, monkeypatch):
    monkeypatch.setattr(retry, "NEW_BUCKET_BUDGET_S", 0.0)
    faulty.set_faults(down_s=0.3)
    storage.write_bytes(url, b"1")
    assert faulty.struck["down_s"] > 1


def test_the_first_read_of_a_dataset_in_a_process_outlasts_refusals(dataset, faulty):
    faulty.set_faults(forbid_next=retry.REFUSED_ATTEMPTS - 1)
    assert shards.read_row_group(dataset, dataset.row_groups[0]).num_rows == 5


def test_a_large_file_whose_upload_cannot_begin_is_complete_or_unchanged(url, faulty, written, monkeypatch):
    large = os.urandom(storage.MULTIPART_BYTES)
    faulty.set_faults(begin_next=ENDLESS)
    monkeypatch.setattr(retry, "BUDGET_S", 0.2)
    with pytest.raises(StorageError, match=r"cannot write it after \d+ attempts in \d+ s: .*SLOW_DOWN"):
        storage.write_bytes(url, large)
    assert storage.read_bytes(url) == written
    faulty.set_faults(begin_next=2)
    storage.write_bytes(url, large)
    assert storage.read_bytes(url) == large
    assert faulty.struck["begin_next"] > 2 and not faulty.struck["PUT of nothing"]


def test_expired_credentials_are_read_anew(url, faulty, written):
    before = filesystem.filesystem(url)[0]
    faulty.set_faults(expire_next=2)
    assert storage.read_bytes(url) == written
    assert filesystem.filesystem(url)[0] is not before


def test_credentials_that_stay_expired_fail_with_advice(url, faulty, written):
    faulty.set_faults(expire_next=ENDLESS)
    for operation in (lambda: storage.read_bytes(url), lambda: storage.write_bytes(url, b"1"), lambda: storage.list_names(url)):
        with pytest.raises(StorageError, match=r"the credentials have expired or are unknown.*: renew them and run the same command"):
            operation()


def test_renewed_credentials_are_used_without_a_new_process(url, faulty, written, monkeypatch):
    right = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "an-expired-key")
    monkeypatch.setattr(filesystem.time, "sleep", lambda _: os.environ.update(AWS_SECRET_ACCESS_KEY=right))
    filesystem._s3.cache_clear()
    assert storage.read_bytes(url) == written


def test_a_write_to_an_absent_bucket_fails_without_a_retry(faulty, caplog):
    with pytest.raises(StorageError, match=r"s3://nobody-made-this/x: cannot write it: .*NO_SUCH_BUCKET"):
        storage.write_bytes("s3://nobody-made-this/x", b"1")
    assert not count_retries(caplog)


def test_a_published_file_damaged_in_transfer_is_read_again(url, faulty, monkeypatch):
    files = {"a.bin": os.urandom(1000)}
    manifest.publish(url, files)
    read_manifest = manifest.read_manifest
    monkeypatch.setattr(manifest, "read_manifest", lambda url: (read_manifest(url), faulty.set_faults(flip_next=2))[0])
    assert manifest.read_published(url) == files
    assert faulty.struck["flip_next"] == 2


@pytest.fixture
def dataset(url, faulty) -> shards.Dataset:
    """A dataset of one shard with one row group, unread."""
    image = np.random.default_rng(0).bytes(20_000)
    records = [Record(f"{n}.jpg", image, 64, 48, objects_from_boxes(np.array([[1, 2, 3, 4]]), np.array([0]))) for n in range(5)]
    data, shard = shards.encode_shard(records, 0)
    storage.write_bytes(storage.join(url, shard.name), data)
    return shards.Dataset(url, ("a",), (), (), ("detect",), 5, 5, {"a": 5}, (shard,), shards.dataset_digest([shard]), {})


@pytest.mark.parametrize("fault", ["flip_next", "reset_next", "short_next"])
@pytest.mark.parametrize("footer_read", [False, True], ids=["footer unread", "footer read"])
def test_a_row_group_damaged_in_transfer_is_read_again(fault, footer_read, dataset, faulty):
    group = dataset.row_groups[0]
    if footer_read:
        shards.read_row_group(dataset, group)
    faulty.set_faults(**{fault: 2})
    assert shards.read_row_group(dataset, group)["name"].to_pylist() == [f"{n}.jpg" for n in range(5)]
    assert faulty.struck[fault] == 2


def test_a_complete_row_group_is_one_ranged_read(dataset, faulty):
    shards.read_row_group(dataset, dataset.row_groups[0])
    before = faulty.struck["GET object"]
    shards.read_row_group(dataset, dataset.row_groups[0])
    assert faulty.struck["GET object"] - before == 1


def test_an_object_overwritten_during_an_epoch_is_detected_after_three_reads(dataset, faulty):
    group = dataset.row_groups[0]
    shards.read_row_group(dataset, group)
    shard_url = storage.join(dataset.url, group.shard)
    data = bytearray(storage.read_bytes(shard_url))
    data[5000] ^= 1
    storage.write_bytes(shard_url, bytes(data))
    before = faulty.struck["GET object"]
    expected = dataset.shards[0].row_group_sha256[0]
    message = (
        rf"{shard_url}, row group 0: found content with SHA-256 \w+, expected {expected} as in dataset\.json: the object was overwritten"
    )
    with pytest.raises(StorageError, match=message):
        shards.read_row_group(dataset, group)
    assert faulty.struck["GET object"] - before == retry.READ_ATTEMPTS


def test_a_damaged_page_is_read_again_when_only_some_columns_are_read(dataset, faulty):
    shards.read_row_group(dataset, dataset.row_groups[0])
    faulty.set_faults(flip_next=1)
    assert shards.read_row_group(dataset, dataset.row_groups[0], ["image"]).num_rows == 5
    assert faulty.struck["flip_next"] == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect to server", FailureKind.TRANSIENT),
        ("NETWORK_CONNECTION during HeadObject operation: curlCode: 28, Timeout was reached", FailureKind.TRANSIENT),
        ("NETWORK_CONNECTION during GetObject operation: curlCode: 60, SSL peer certificate was not OK", FailureKind.PERMANENT),
        ("UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", FailureKind.TRANSIENT),
        ("UNKNOWN (HTTP status 502) during GetObject operation: ", FailureKind.TRANSIENT),
        (
            "UNKNOWN (HTTP status 501) during PutObject operation: Unable to parse ExceptionName: NotImplemented Message: x",
            FailureKind.PERMANENT,
        ),
        ("UNKNOWN (HTTP status 505) during GetObject operation: ", FailureKind.PERMANENT),
        ("SERVICE_UNAVAILABLE during GetObject operation: ", FailureKind.TRANSIENT),
        ("INTERNAL_FAILURE during PutObject operation: We encountered an internal error.", FailureKind.TRANSIENT),
        ("NO_SUCH_UPLOAD during CompleteMultipartUpload operation: gone", FailureKind.TRANSIENT),
        (
            "UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: BadDigest Message: x",
            FailureKind.TRANSIENT,
        ),
        (
            "UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: ExpiredToken Message: x",
            FailureKind.EXPIRED,
        ),
        ("UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", FailureKind.EXPIRED),
        ("UNKNOWN (HTTP status 400) during GetObject operation: ", FailureKind.EXPIRED),
        (
            "UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: InvalidArgument Message: x",
            FailureKind.PERMANENT,
        ),
        ("INVALID_ACCESS_KEY_ID during ListObjectsV2 operation: The Access Key Id you provided does not exist", FailureKind.EXPIRED),
        ("ACCESS_DENIED during HeadObject operation: No response body.", FailureKind.REFUSED),
        ("SIGNATURE_DOES_NOT_MATCH during PutObject operation: The request signature", FailureKind.PERMANENT),
        ("NO_SUCH_BUCKET during PutObject operation: The specified bucket does not exist", FailureKind.PERMANENT),
        (
            "UNKNOWN (HTTP status 301) during HeadObject operation: No response body. Looks like the configured region is",
            FailureKind.PERMANENT,
        ),
    ],
)
def test_a_failure_is_classified_by_its_cause_and_not_by_the_name_of_the_object(text, kind):
    assert failure_kind(OSError(f"When reading information for key 'SLOW_DOWN' in bucket 'ExpiredToken': AWS Error {text}")) is kind


def test_damaged_parquet_is_read_again_and_a_full_disk_is_not():
    assert failure_kind(OSError("CRC checksum verification failed for page ordinal 0")) is FailureKind.DAMAGED
    assert failure_kind(pa.ArrowInvalid("Parquet magic bytes not found in footer")) is FailureKind.DAMAGED
    assert failure_kind(OSError(28, "No space left on device")) is FailureKind.PERMANENT
    assert failure_kind(pa.ArrowMemoryError("malloc failed")) is FailureKind.PERMANENT


@pytest.mark.parametrize(("first_contact", "budget_s"), [(False, retry.BUDGET_S), (True, retry.NEW_BUCKET_BUDGET_S)])
def test_waits_grow_up_to_a_cap_and_end_with_the_budget(first_contact, budget_s, monkeypatch):
    now, waits = [100.0], []
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)
    budget = RetryBudget(first_contact)
    while (wait_s := budget.wait_s(FailureKind.TRANSIENT)) is not None:
        waits.append(wait_s)
        now[0] += wait_s
    assert waits[:6] == [0.5, 1, 2, 4, 8, 10]
    assert budget_s - retry.WAIT_CAP_S <= sum(waits) < budget_s
    assert budget.summary() == f" after {len(waits) + 1} attempts in {sum(waits):.0f} s"


def test_an_operation_that_takes_longer_than_the_budget_is_attempted_again(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])
    budget = RetryBudget()
    now[0] = 2 * retry.BUDGET_S
    assert budget.wait_s(FailureKind.TRANSIENT) is not None

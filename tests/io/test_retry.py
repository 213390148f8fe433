import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from faulty_s3 import FaultyS3
from yolor_ray.data.shards import dataset as shards
from yolor_ray.data.shards.records import Record, objects_from_boxes
from yolor_ray.errors import StorageError
from yolor_ray.io import filesystem, manifest, retry, storage
from yolor_ray.io.retry import FailureKind, RetryBudget, failure_kind

ENDLESS = 10_000


@pytest.fixture
def url(s3) -> str:
    """The URL of an object in a bucket that never answered in this process."""
    return storage.join(s3(), "folder", "object")


@pytest.fixture
def faulty(url, monkeypatch) -> Iterator[FaultyS3]:
    """Put a proxy that makes faults before the real S3 server, and wait only briefly between the tries."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(retry, "WAIT_CAP_S", 0.1)
    monkeypatch.setattr(storage, "ATTEMPTS_OF_SDK", 1)
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def written(url, faulty) -> bytes:
    """What the object holds: a megabyte, written and read once."""
    data = os.urandom(1_000_000)
    storage.write_bytes(url, data)
    assert storage.read_bytes(url) == data
    return data


def retried(caplog) -> int:
    return sum("event=storage_retry" in record.getMessage() for record in caplog.records)


# The SDK waits for whole seconds, so that it meets fewer faults.
@pytest.mark.parametrize(("attempts_of_sdk", "share", "least"), [(1, 0.6, 20), (filesystem.SDK_ATTEMPTS, 0.3, 3)], ids=["ours", "shipped"])
def test_bursts_of_slow_down_are_waited_out_whatever_is_done(attempts_of_sdk, share, least, url, faulty, caplog, monkeypatch):
    monkeypatch.setattr(storage, "ATTEMPTS_OF_SDK", attempts_of_sdk)
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
    assert faulty.struck["share_503"] > least
    assert retried(caplog)


def test_a_folder_is_removed_though_hardly_ever_all_requests_for_it_get_through_in_a_row(url, faulty, monkeypatch):
    folder = url.rsplit("/", 1)[0]
    for number in range(8):
        storage.write_bytes(storage.join(folder, *("deep" for _ in range(number % 2)), str(number)), b"1")
    monkeypatch.setattr(retry, "BUDGET_S", 8.0)
    faulty.set_faults(share_503=0.5)
    storage.delete(folder)
    faulty.set_faults(share_503=0)
    assert storage.list_names(folder) == []


@pytest.mark.parametrize("fault", ["reset_next", "short_next"])
def test_an_object_that_breaks_off_in_the_middle_is_read_again(fault, url, faulty, written, caplog):
    faulty.set_faults(**{fault: 2})
    assert storage.read_bytes(url) == written
    assert faulty.struck[fault] == 2
    assert f"event=storage_retry url={url} attempt=1 wait_s=0.0 reason=" in caplog.text
    assert "NETWORK_CONNECTION" in caplog.text


def test_a_store_that_is_down_for_a_while_is_waited_for(url, faulty, written):
    faulty.set_faults(down_s=0.5)
    assert storage.read_bytes(url) == written
    assert faulty.struck["down_s"] > 2


def test_a_store_that_stays_down_is_given_up_when_the_budget_is_spent(url, faulty, written, monkeypatch):
    monkeypatch.setattr(retry, "BUDGET_S", 0.2)
    faulty.set_faults(down_s=ENDLESS)
    with pytest.raises(StorageError, match=rf"{url}: cannot write it after \d+ attempts in \d+ s: .*NETWORK_CONNECTION"):
        storage.write_bytes(url, b"1")


@pytest.mark.parametrize(("fault", "told"), [("forbid_next", "ACCESS_DENIED"), ("expire_next", "HTTP status 400")])
def test_a_first_refusal_fails_at_once_after_one_request(fault, told, url, faulty):
    faulty.set_faults(**{fault: ENDLESS})
    with pytest.raises(StorageError, match=rf"{url}: cannot read it: .*{told}"):
        storage.read_bytes(url)
    assert faulty.struck["requests"] == 1


def test_a_refusal_after_success_is_tried_a_few_times(url, faulty, written):
    faulty.set_faults(forbid_next=retry.FEW_ATTEMPTS - 1)
    assert storage.read_bytes(url) == written
    faulty.set_faults(forbid_next=ENDLESS)
    before = faulty.struck["requests"]
    with pytest.raises(StorageError, match=rf"cannot read it after {retry.FEW_ATTEMPTS} attempts in 0 s: .*ACCESS_DENIED"):
        storage.read_bytes(url)
    assert faulty.struck["requests"] - before == retry.FEW_ATTEMPTS


def test_a_fresh_process_reads_a_data_set_as_patiently_as_the_one_that_opened_it(dataset, faulty, monkeypatch):
    monkeypatch.setattr(storage, "_answered", set())
    faulty.set_faults(forbid_next=retry.FEW_ATTEMPTS - 1)
    assert shards.read_row_group(dataset, dataset.row_groups[0]).num_rows == 5


def test_a_large_file_whose_upload_cannot_begin_is_whole_or_as_it_was(url, faulty, written, monkeypatch):
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


def test_credentials_that_expired_are_read_afresh(url, faulty, written):
    before = filesystem.filesystem(url)[0]
    faulty.set_faults(expire_next=2)
    assert storage.read_bytes(url) == written
    assert filesystem.filesystem(url)[0] is not before


def test_credentials_that_stay_expired_are_told_with_what_to_do(url, faulty, written):
    faulty.set_faults(expire_next=ENDLESS)
    for act in (lambda: storage.read_bytes(url), lambda: storage.write_bytes(url, b"1"), lambda: storage.list_names(url)):
        with pytest.raises(StorageError, match=r"the credentials have expired or are unknown.*: renew them and give the same command"):
            act()


def test_renewed_credentials_are_picked_up_without_a_new_process(url, faulty, written, monkeypatch):
    right = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "gone-with-the-hour")
    monkeypatch.setattr(storage.time, "sleep", lambda _: os.environ.update(AWS_SECRET_ACCESS_KEY=right))
    filesystem._s3.cache_clear()
    assert storage.read_bytes(url) == written


def test_a_bucket_that_is_not_there_fails_at_once(faulty, caplog):
    with pytest.raises(StorageError, match=r"s3://nobody-made-this/x: cannot write it: .*NO_SUCH_BUCKET"):
        storage.write_bytes("s3://nobody-made-this/x", b"1")
    assert not retried(caplog)


def test_a_published_file_damaged_on_the_way_is_read_again(url, faulty, monkeypatch):
    files = {"a.bin": os.urandom(1000)}
    manifest.publish(url, files)
    read_manifest = manifest._manifest
    monkeypatch.setattr(manifest, "_manifest", lambda place: (read_manifest(place), faulty.set_faults(flip_next=2))[0])
    assert manifest.read_published(url) == files
    assert faulty.struck["flip_next"] == 2


@pytest.fixture
def dataset(url, faulty) -> shards.Dataset:
    """A data set of one shard with one row group, unread."""
    image = np.random.default_rng(0).bytes(20_000)
    records = [Record(f"{n}.jpg", image, 64, 48, objects_from_boxes(np.array([[1, 2, 3, 4]]), np.array([0]))) for n in range(5)]
    data, shard = shards.shard_bytes(records, 0)
    storage.write_bytes(storage.join(url, shard.name), data)
    return shards.Dataset(url, ("a",), (), (), ("detect",), 5, 5, {"a": 5}, (shard,), shards.dataset_digest([shard]), {})


@pytest.mark.parametrize("fault", ["flip_next", "reset_next", "short_next"])
@pytest.mark.parametrize("footer_is_known", [False, True], ids=["footer unread", "footer read"])
def test_a_row_group_damaged_on_the_way_is_read_again(fault, footer_is_known, dataset, faulty):
    group = dataset.row_groups[0]
    if footer_is_known:
        shards.read_row_group(dataset, group)
    faulty.set_faults(**{fault: 2})
    assert shards.read_row_group(dataset, group)["name"].to_pylist() == [f"{n}.jpg" for n in range(5)]
    assert faulty.struck[fault] == 2


def test_a_whole_row_group_is_one_ranged_read(dataset, faulty):
    shards.read_row_group(dataset, dataset.row_groups[0])
    before = faulty.struck["GET object"]
    shards.read_row_group(dataset, dataset.row_groups[0])
    assert faulty.struck["GET object"] - before == 1


def test_an_object_overwritten_in_the_middle_of_an_epoch_is_noticed_and_read_no_more_than_three_times(dataset, faulty):
    group = dataset.row_groups[0]
    shards.read_row_group(dataset, group)
    place = storage.join(dataset.url, group.shard)
    data = bytearray(storage.read_bytes(place))
    data[5000] ^= 1
    storage.write_bytes(place, bytes(data))
    before = faulty.struck["GET object"]
    expected = dataset.shards[0].row_group_sha256[0]
    message = rf"{place}, row group 0: found content with SHA-256 \w+, expected {expected} as in dataset\.json: the object was overwritten"
    with pytest.raises(StorageError, match=message):
        shards.read_row_group(dataset, group)
    assert faulty.struck["GET object"] - before == retry.READ_ATTEMPTS


def test_a_damaged_page_is_read_again_when_only_some_columns_are_wanted(dataset, faulty):
    shards.read_row_group(dataset, dataset.row_groups[0])
    faulty.set_faults(flip_next=1)
    assert shards.read_row_group(dataset, dataset.row_groups[0], ["image"]).num_rows == 5
    assert faulty.struck["flip_next"] == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect to server", FailureKind.PASSING),
        ("NETWORK_CONNECTION during HeadObject operation: curlCode: 28, Timeout was reached", FailureKind.PASSING),
        ("NETWORK_CONNECTION during GetObject operation: curlCode: 60, SSL peer certificate was not OK", FailureKind.LASTING),
        ("UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", FailureKind.PASSING),
        ("UNKNOWN (HTTP status 502) during GetObject operation: ", FailureKind.PASSING),
        (
            "UNKNOWN (HTTP status 501) during PutObject operation: Unable to parse ExceptionName: NotImplemented Message: x",
            FailureKind.LASTING,
        ),
        ("UNKNOWN (HTTP status 505) during GetObject operation: ", FailureKind.LASTING),
        ("SERVICE_UNAVAILABLE during GetObject operation: ", FailureKind.PASSING),
        ("INTERNAL_FAILURE during PutObject operation: We encountered an internal error.", FailureKind.PASSING),
        ("NO_SUCH_UPLOAD during CompleteMultipartUpload operation: gone", FailureKind.PASSING),
        ("UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: BadDigest Message: x", FailureKind.PASSING),
        (
            "UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: ExpiredToken Message: x",
            FailureKind.EXPIRED,
        ),
        ("UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", FailureKind.EXPIRED),
        ("UNKNOWN (HTTP status 400) during GetObject operation: ", FailureKind.EXPIRED),
        (
            "UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: InvalidArgument Message: x",
            FailureKind.LASTING,
        ),
        ("INVALID_ACCESS_KEY_ID during ListObjectsV2 operation: The Access Key Id you provided does not exist", FailureKind.EXPIRED),
        ("ACCESS_DENIED during HeadObject operation: No response body.", FailureKind.REFUSED),
        ("SIGNATURE_DOES_NOT_MATCH during PutObject operation: The request signature", FailureKind.LASTING),
        ("NO_SUCH_BUCKET during PutObject operation: The specified bucket does not exist", FailureKind.LASTING),
        (
            "UNKNOWN (HTTP status 301) during HeadObject operation: No response body. Looks like the configured region is",
            FailureKind.LASTING,
        ),
    ],
)
def test_the_words_of_a_failure_tell_what_it_asks_for_and_an_object_s_name_does_not(text, kind):
    assert failure_kind(OSError(f"When reading information for key 'SLOW_DOWN' in bucket 'ExpiredToken': AWS Error {text}")) is kind


def test_what_parquet_finds_damaged_is_read_again_and_a_full_disk_is_not():
    assert failure_kind(OSError("CRC checksum verification failed for page ordinal 0")) is FailureKind.DAMAGED
    assert failure_kind(pa.ArrowInvalid("Parquet magic bytes not found in footer")) is FailureKind.DAMAGED
    assert failure_kind(OSError(28, "No space left on device")) is FailureKind.LASTING
    assert failure_kind(pa.ArrowMemoryError("malloc failed")) is FailureKind.LASTING


@pytest.mark.parametrize(("known", "budget_s"), [(True, retry.BUDGET_S), (False, retry.NEW_BUCKET_BUDGET_S)])
def test_waits_grow_up_to_a_cap_and_end_with_the_budget(known, budget_s, monkeypatch):
    now, waits = [100.0], []
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)
    patience = RetryBudget(known)
    while (wait_s := patience.wait_s(FailureKind.PASSING)) is not None:
        waits.append(wait_s)
        now[0] += wait_s
    assert waits[:6] == [0.5, 1, 2, 4, 8, 10]
    assert budget_s - retry.WAIT_CAP_S <= sum(waits) < budget_s
    assert patience.summary() == f" after {len(waits) + 1} attempts in {sum(waits):.0f} s"


def test_an_operation_longer_than_the_budget_is_tried_again(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])
    patience = RetryBudget(reachable=True)
    now[0] = 2 * retry.BUDGET_S
    assert patience.wait_s(FailureKind.PASSING) is not None

"""The check of a configuration's buckets before a job: one request per bucket, and clear errors within the short budget."""

import socket

import pytest

from yolor_ray.config import DataConfig, EvaluateConfig, RunConfig, TrainConfig
from yolor_ray.errors import ConfigError, StorageError
from yolor_ray.io import filesystem, retry, storage
from yolor_ray.io.filesystem import check_reachable, urls_in

ENDLESS = 10_000


def test_the_check_sends_one_request_to_each_bucket(s3, url, faulty, tmp_path):
    other_bucket = s3()
    check_reachable([url, storage.join(url, "deeper"), other_bucket, str(tmp_path / "absent"), "scenes:8"])
    assert +faulty.struck == {"requests": 2, "GET bucket": 2}


def test_the_check_of_a_mistyped_endpoint_fails_within_the_short_budget(url, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(retry, "WAIT_CAP_S", 0.01)
    monkeypatch.setattr(retry, "NEW_BUCKET_BUDGET_S", 0.1)
    monkeypatch.setattr(retry, "BUDGET_S", float("inf"))
    monkeypatch.setattr(filesystem, "SDK_ATTEMPTS", 1)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        bucket = url.removesuffix("/folder/object")
        with pytest.raises(StorageError, match=rf"^{bucket}: cannot reach it after \d+ attempts in \d+ s: .*NETWORK_CONNECTION"):
            check_reachable([url])


def test_the_check_looks_up_the_region_of_a_bucket_within_the_short_budget(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(retry, "NEW_BUCKET_BUDGET_S", 0.0)
    monkeypatch.setattr(retry, "BUDGET_S", float("inf"))
    lookups = []

    def resolve(bucket: str) -> str:
        lookups.append(bucket)
        raise OSError("When resolving region: AWS Error NETWORK_CONNECTION during HeadBucket operation: curlCode: 6")

    monkeypatch.setattr(filesystem.fs, "resolve_s3_region", resolve)
    assert filesystem.path_of("s3://some-bucket/x") == "some-bucket/x"
    with pytest.raises(StorageError, match=r"^s3://some-bucket: cannot reach it: .*NETWORK_CONNECTION"):
        check_reachable(["s3://some-bucket/x"])
    assert lookups == ["some-bucket"]


def test_the_check_of_an_absent_bucket_fails_after_one_request(faulty):
    with pytest.raises(StorageError, match=r"^s3://nobody-made-this: cannot reach it: .*NO_SUCH_BUCKET"):
        check_reachable(["s3://nobody-made-this/x"])
    assert faulty.struck["requests"] == 1


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("AWS_SECRET_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH"),
        ("AWS_ACCESS_KEY_ID", "INVALID_ACCESS_KEY_ID.*the credentials have expired or are unknown"),
    ],
)
def test_the_check_with_refused_credentials_fails_after_one_request(variable, message, url, faulty, monkeypatch):
    monkeypatch.setenv(variable, "canary-of-a-wrong-key")
    filesystem._s3.cache_clear()
    with pytest.raises(StorageError, match=rf"cannot reach it: .*{message}") as caught:
        check_reachable([url])
    assert "canary" not in str(caught.value)
    assert faulty.struck["requests"] == 1


def test_the_check_with_expired_credentials_fails_after_one_request(url, faulty):
    faulty.set_faults(expire_next=ENDLESS)
    with pytest.raises(StorageError, match=r"cannot reach it: .*ExpiredToken.*: renew them and run the same command"):
        check_reachable([url])
    assert faulty.struck["requests"] == 1


def test_the_check_accepts_a_bucket_that_can_be_read_but_not_listed(url, faulty, written):
    faulty.set_faults(forbid_next=1)
    check_reachable([url])
    assert faulty.struck["forbid_next"] == 1
    assert storage.read_bytes(url) == written


def test_the_check_outlasts_a_short_outage(url, faulty):
    faulty.set_faults(down_s=0.3)
    check_reachable([url])
    assert faulty.struck["down_s"] > 1


def test_the_check_refuses_a_malformed_url():
    with pytest.raises(ConfigError, match="found no plain bucket name"):
        check_reachable(["s3://user:password@bucket/x"])


def test_the_urls_in_a_configuration_are_those_of_all_sections_and_lists():
    config = TrainConfig(data=DataConfig(train="s3://a/train, s3://b/train,local", val="scenes:8"), run=RunConfig(storage="s3://c/runs"))
    assert urls_in(config) == ["s3://a/train", "s3://b/train", "s3://c/runs"]
    assert urls_in(EvaluateConfig(weights="weights", data="s3://d/val")) == ["s3://d/val"]
    assert urls_in(("optim.pretrained=s3://e/a,s3://f/b", "optim.lr=1,2")) == ["s3://e/a", "s3://f/b"]
    assert urls_in(TrainConfig()) == []

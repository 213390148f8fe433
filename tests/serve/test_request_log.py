"""Metrics of work and refusals, and the access log."""

import json
import re

import pytest

from red_engine import RedEngine, encode_image, serve_settings
from yolor_ray.errors import ConfigError
from yolor_ray.serve.http import request_log

JPEG = encode_image()


def sample(client, start):
    """Return the value of the first sample whose line starts so, without its labels of the replica."""
    for line in re.sub(r',?replica="replica-1",?', "", client.get("/metrics").text).replace("{}", "").splitlines():
        if line.startswith(start + " "):
            return float(line.rpartition(" ")[2])
    return None


def test_work_and_refusals_are_counted(serve):
    engine = RedEngine()
    with serve(engine, max_batch=2) as client:
        client.post(JPEG)
        assert sample(client, "yolor_in_flight") == 0 and sample(client, "yolor_queue_depth") == 0
        assert sample(client, "yolor_batch_fill_sum") == 0.5
        assert sample(client, 'yolor_confidence_bucket{le="0.9"}') == 1 and sample(client, 'yolor_confidence_bucket{le="0.8"}') == 0
        client.post(b"no image")
        client.post(JPEG, query="?iou=3")
        client.get("/nowhere")
        for reason in ("unsupported_image", "bad_parameter", "not_found"):
            assert sample(client, f'yolor_refusals_total{{reason="{reason}"}}') == 1
        engine.failure = ValueError("broken")
        client.post(JPEG)
        assert sample(client, 'yolor_refusals_total{reason="internal_error"}') == 1


def test_work_in_flight_and_the_queue_are_seen_while_the_network_is_busy(serve):
    from concurrent.futures import ThreadPoolExecutor

    engine = RedEngine()
    with serve(engine, max_batch=1) as client, ThreadPoolExecutor(3) as pool:
        engine.gate.clear()
        answers = [pool.submit(client.post, JPEG) for _ in range(3)]
        while sample(client, "yolor_in_flight") != 3 or sample(client, "yolor_queue_depth") != 2:
            assert not any(answer.done() for answer in answers)
        engine.gate.set()
        assert {answer.result().status_code for answer in answers} == {200}
        assert sample(client, "yolor_in_flight") == 0 and sample(client, "yolor_queue_depth") == 0


def test_images_whose_clients_have_left_do_not_wait(serve):
    from concurrent.futures import ThreadPoolExecutor

    engine = RedEngine()
    with serve(engine, max_batch=1) as client, ThreadPoolExecutor(3) as pool:
        engine.gate.clear()
        answers = [pool.submit(client.post, JPEG, **{"X-Request-Timeout-Ms": "500"}) for _ in range(3)]
        assert {answer.result().status_code for answer in answers} == {504}
        # Also while the network is still busy with the first image.
        assert sample(client, "yolor_in_flight") == 0 and sample(client, "yolor_queue_depth") == 0
        engine.gate.set()


def test_one_json_line_for_each_request(serve, tmp_path):
    log = tmp_path / "access.jsonl"
    with serve(access_log=str(log)) as client:
        client.post(JPEG, query="?confidence=0.5", **{"X-Request-ID": "one", "Authorization": "Bearer secret-7"})
        client.post(b"no image", **{"X-Request-ID": "two"})
        client.get("/readyz", **{"X-Request-ID": "three"})
    first, second, third = map(json.loads, log.read_text().splitlines())
    assert re.fullmatch(r"20\d\d-.*\+00:00", first.pop("time"))
    assert first.pop("seconds") > 0 and set(first.pop("timing_ms")) == {"body", "decode", "queue", "network"}
    model = {"name": "fake", "version": "0123456789ab"}
    request = {"request_id": "one", "method": "POST", "route": "/v1/detect", "key": None, "model": model}
    assert first == {
        **request,
        "status": 200,
        "code": None,
        "body_bytes": len(JPEG),
        "image": {"width": 200, "height": 120},
        "detections": 1,
        "tiles": 1,
    }
    assert (second["request_id"], second["status"], second["code"], second["model"]) == ("two", 415, "unsupported_image", model)
    assert (third["route"], third["status"]) == ("/readyz", 200)
    assert "secret" not in log.read_text() and "confidence" not in log.read_text()


def test_the_log_has_the_name_of_the_key_and_never_the_key(serve, tmp_path):
    import hashlib

    keys, log = tmp_path / "keys", tmp_path / "access.jsonl"
    keys.write_text(f"lab sha256:{hashlib.sha256(b'key-of-lab').hexdigest()}")
    with serve(api_keys=str(keys), access_log=str(log)) as client:
        client.post(JPEG, **{"X-API-Key": "key-of-lab"})
        client.post(JPEG, **{"X-API-Key": "key-of-another"})
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["key"], line["status"]) for line in lines] == [("lab", 200), (None, 403)]
    assert "key-of" not in log.read_text()


def test_the_log_is_sampled_and_errors_of_the_service_are_always_there(serve, tmp_path, monkeypatch):
    engine, log = RedEngine(), tmp_path / "access.jsonl"
    draws = iter([0.05, 0.5, 0.5])
    monkeypatch.setattr(request_log.random, "random", lambda: next(draws))
    with serve(engine, access_log=str(log), access_log_rate=0.1) as client:
        assert [client.post(JPEG).status_code for _ in range(3)] == [200, 200, 200]
        engine.failure = ValueError("broken")
        assert client.post(JPEG).status_code == 500
    assert [json.loads(line)["status"] for line in log.read_text().splitlines()] == [200, 500]


def test_a_log_that_a_rotation_moved_away_is_opened_anew(serve, tmp_path):
    log = tmp_path / "access.jsonl"
    with serve(access_log=str(log)) as client:
        client.get("/readyz")
        log.rename(tmp_path / "access.1")
        client.get("/readyz")
    assert len(log.read_text().splitlines()) == len((tmp_path / "access.1").read_text().splitlines()) == 1


def test_a_request_is_answered_when_its_line_cannot_be_written(serve, tmp_path, caplog):
    folder = tmp_path / "logs"
    folder.mkdir()
    with serve(access_log=str(folder / "access.jsonl")) as client:
        (folder / "access.jsonl").unlink()
        folder.rmdir()
        assert client.post(JPEG).status_code == 200
    assert "event=access_log_failed" in caplog.text


def test_a_log_that_cannot_be_written_is_refused_by_name(serve, tmp_path):
    with pytest.raises(ConfigError, match=r"access_log: found .*no-folder"), serve(access_log=str(tmp_path / "no-folder" / "log")):
        pass
    for wrong in ({"access_log": "s3://b/log"}, {"access_log_rate": 0.0}, {"access_log_rate": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            serve_settings(**wrong)

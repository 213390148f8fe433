"""Routes of the Open Inference Protocol: images in a tensor of bytes, detections in tensors, in JSON and as bytes."""

import base64
import json
import struct

import jsonschema
import numpy as np
import pytest
import requests
from PIL import Image
from test_api_keys import LAB, bearer, line
from test_batch_requests import PHOTOS, RECTANGLES
from test_http import in_parallel, wait_for

from red_engine import ALL_TASKS, RedEngine, draw_image, encode_image
from yolor_ray.serve.http.kserve import OUTPUTS
from yolor_ray.serve.http.tensors import Tensor, read_elements

EMPTY = encode_image(Image.new("RGB", (200, 120)), "PNG")
IMAGES = [PHOTOS[0][1], EMPTY, PHOTOS[1][1]]
DTYPES = {"FP32": "<f4", "INT64": "<i8"}


def error_of(answer):
    body = answer.json()
    assert set(body) == {"code", "message", "request_id", "error"}
    assert body["error"] == body["message"]
    return answer.status_code, body["code"]


def tensor(images, **changes):
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "images", "datatype": "BYTES", "shape": [len(images)], "data": data} | changes


def infer(client, document, name="fake", **headers):
    return requests.post(f"{client.base}/v2/models/{name}/infer", json=document, headers=headers, timeout=20)


def infer_bytes(client, document, binary, **headers):
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"} | headers
    return requests.post(f"{client.base}/v2/models/fake/infer", data=head + binary, headers=headers, timeout=20)


def as_elements(images):
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


def outputs_of(answer):
    """Return the outputs as arrays and lists by name, from JSON or from bytes."""
    assert answer.status_code == 200, answer.text
    length = answer.headers.get("Inference-Header-Content-Length")
    document, rest = json.loads(answer.content[: length and int(length)]), answer.content[int(length) :] if length else b""
    outputs = {}
    for output in document["outputs"]:
        data = output.get("data")
        if data is None:
            size = output["parameters"]["binary_data_size"]
            data, rest = rest[:size], rest[size:]
            data = (
                [text.decode() for text in read_elements(data)]
                if output["datatype"] == "BYTES"
                else np.frombuffer(data, DTYPES[output["datatype"]])
            )
        outputs[output["name"]] = np.array(data, DTYPES.get(output["datatype"], object)).reshape(output["shape"])
        assert OUTPUTS[output["name"]] == output["datatype"]
    assert rest == b""
    return outputs


def test_boxes_scores_and_labels_of_all_images_are_in_tensors(client):
    answer = infer(client, {"id": "42", "inputs": [tensor(IMAGES)]})
    assert answer.headers["Content-Type"] == "application/json"
    assert {name: answer.json()[name] for name in ("id", "model_name", "model_version")} == {
        "id": "42",
        "model_name": "fake",
        "model_version": "0123456789ab",
    }
    outputs = outputs_of(answer)
    assert list(outputs) == list(OUTPUTS)
    np.testing.assert_allclose(outputs["boxes"], RECTANGLES[:2], atol=2)
    np.testing.assert_allclose(outputs["scores"], [0.9, 0.9])
    assert outputs["labels"].tolist() == ["red", "red"] and outputs["image_index"].tolist() == [0, 2]
    assert "id" not in infer(client, {"inputs": [tensor(IMAGES)]}).json()


def test_an_answer_names_the_version_in_the_release_folder(serve, client):
    with serve(release="0007-3f9a1c2d2b10") as released:
        plain = infer(released, {"inputs": [tensor([EMPTY])]})
        assert plain.json()["parameters"] == {"release": "0007-3f9a1c2d2b10"}
        binary = infer(released, {"inputs": [tensor([EMPTY])], "parameters": {"binary_data_output": True}})
        head = json.loads(binary.content[: int(binary.headers["Inference-Header-Content-Length"])])
        assert head["parameters"] == {"release": "0007-3f9a1c2d2b10"}
    assert "parameters" not in infer(client, {"inputs": [tensor([EMPTY])]}).json()


def test_the_output_detections_has_all_that_detect_answers(serve):
    with serve(RedEngine(tasks=ALL_TASKS)) as client:
        texts = outputs_of(infer(client, {"inputs": [tensor(IMAGES)]}))["detections"]
        for image, text in zip(IMAGES, texts, strict=True):
            alone, fields = client.post(image).json(), json.loads(text)
            assert fields.pop("timing_ms").keys() == alone.pop("timing_ms").keys()
            assert fields == {name: alone[name] for name in ("image", "detections", "labels")}


def test_images_without_objects_give_tensors_of_no_rows(client):
    outputs = outputs_of(infer(client, {"inputs": [tensor([EMPTY])]}))
    assert [outputs[name].shape for name in OUTPUTS] == [(0, 4), (0,), (0,), (0,), (1,)]


def test_images_travel_as_bytes_after_the_json(client):
    binary = as_elements(IMAGES)
    described = tensor(IMAGES, parameters={"binary_data_size": len(binary)})
    del described["data"]
    found = outputs_of(infer_bytes(client, {"inputs": [described]}, binary))
    expected = outputs_of(infer(client, {"inputs": [tensor(IMAGES)]}))
    for name in OUTPUTS.keys() - {"detections"}:
        np.testing.assert_array_equal(found[name], expected[name])


def test_outputs_travel_as_bytes_where_the_request_asks_for_it(client):
    plain = outputs_of(infer(client, {"inputs": [tensor(IMAGES)]}))
    everything = infer(client, {"inputs": [tensor(IMAGES)], "parameters": {"binary_data_output": True}})
    assert everything.headers["Content-Type"] == "application/octet-stream"
    some = infer(
        client,
        {
            "inputs": [tensor(IMAGES)],
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "scores", "parameters": {"binary_data": False}}, {"name": "boxes"}, {"name": "labels"}],
        },
    )
    one = infer(client, {"inputs": [tensor(IMAGES)], "outputs": [{"name": "image_index", "parameters": {"binary_data": True}}]})
    assert b'"data":[0.9,0.9]' in some.content.replace(b" ", b"")
    for answer, names in ((everything, {*OUTPUTS}), (some, {"scores", "boxes", "labels"}), (one, {"image_index"})):
        outputs = outputs_of(answer)
        assert set(outputs) == names
        for name in names - {"detections"}:
            np.testing.assert_array_equal(outputs[name], plain[name])


@pytest.mark.parametrize("texts", [[], ["é", "", "a" * 300]])
def test_texts_survive_the_way_through_bytes(texts):
    assert [element.decode() for element in read_elements(Tensor("t", "BYTES", (len(texts),), texts).to_bytes())] == texts


def test_parameters_are_those_of_detect(client):
    def labels(**parameters):
        return len(outputs_of(infer(client, {"inputs": [tensor(IMAGES)], "parameters": parameters}))["labels"])

    assert labels(confidence=0.5) == labels(confidence="best") == labels(masks=False, iou=0.3) == 2
    assert labels(confidence=0.95) == 0
    answer = infer(client, {"inputs": [tensor(IMAGES)], "parameters": {"confidence": 2}})
    assert error_of(answer) == (422, "bad_parameter")
    assert answer.json()["message"] == "confidence: found '2', expected a number from 0 to 1, or best"
    answer = infer(client, {"inputs": [tensor(IMAGES)], "parameters": {"conf": 0.5}})
    assert error_of(answer) == (422, "bad_parameter") and "'conf': unknown parameter" in answer.json()["message"]


def test_an_image_that_cannot_be_used_refuses_the_request_by_its_index(client):
    answer = infer(client, {"inputs": [tensor([IMAGES[0], IMAGES[0][:200], EMPTY])]})
    assert error_of(answer) == (422, "truncated_image")
    assert answer.json()["message"].startswith("images[1]: ")
    assert error_of(infer(client, {"inputs": [tensor([b"<html>"])]})) == (415, "unsupported_image")


LONG = as_elements(IMAGES)
SIZED = {"name": "images", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(LONG)}}


@pytest.mark.parametrize(
    ("document", "binary", "code", "message"),
    [
        ({"inputs": []}, None, "bad_tensor", "inputs: found none, expected one, 'images' of BYTES"),
        ({"inputs": [tensor(IMAGES)] * 2}, None, "bad_tensor", "inputs: found 'images' of BYTES, 'images' of BYTES"),
        ({"inputs": [tensor(IMAGES, name="x")]}, None, "bad_tensor", "inputs: found 'x' of BYTES"),
        ({"inputs": [tensor(IMAGES, datatype="UINT8")]}, None, "bad_tensor", "inputs: found 'images' of UINT8"),
        ({"inputs": [tensor(IMAGES, shape=[3, 1])]}, None, "bad_tensor", "images: found 3 images of shape [3, 1], expected shape [N]"),
        ({"inputs": [tensor(IMAGES, shape=[2])]}, None, "bad_tensor", "images: found 3 images of shape [2]"),
        ({"inputs": [tensor([])]}, None, "bad_tensor", "images: found 0 images of shape [0], expected shape [N] and N images, 1 to 32"),
        ({"inputs": [tensor([b""] * 33)]}, None, "bad_tensor", "images: found 33 images"),
        ({"inputs": [tensor(IMAGES, data=["a*b="] * 3)]}, None, "bad_base64", "found invalid base64"),
        ({"inputs": [tensor(IMAGES, data=[1, 2, 3])]}, None, "bad_json", "inputs.0.data.0: Input should be a valid string"),
        ({"inputs": [tensor(IMAGES, parameters={"confidence": 0.5})]}, None, "bad_json", "inputs.0.parameters.confidence: Extra inputs"),
        (
            {"inputs": [tensor(IMAGES)], "outputs": [{"name": "masks"}]},
            None,
            "bad_tensor",
            "outputs: found 'masks', expected some of boxes,",
        ),
        ({"inputs": [tensor(IMAGES)], "parameters": {"binary_data_output": 1}}, None, "bad_tensor", "binary_data_output: found '1'"),
        ([1], None, "bad_json", "body: Input should be a valid dictionary"),
        ({"inputs": [SIZED]}, LONG[:-1], "bad_tensor", "bytes after the JSON, expected data, or binary_data_size"),
        ({"inputs": [SIZED | {"data": []}]}, LONG, "bad_tensor", "images: found data, binary_data_size"),
        ({"inputs": [tensor(IMAGES)]}, b"more", "bad_tensor", "images: found data, binary_data_size None and 4 bytes after the JSON"),
        ({"inputs": [SIZED | {"parameters": {}}]}, b"", "bad_tensor", "images: found no data, binary_data_size None and 0 bytes"),
        ({"inputs": [SIZED | {"parameters": {"binary_data_size": 5}}]}, b"\1\0\0\0", "bad_tensor", "and 4 bytes after the JSON"),
        ({"inputs": [SIZED | {"parameters": {"binary_data_size": 5}}]}, b"\2\0\0\0a", "bad_tensor", "found 5 bytes that end in element 0"),
        ({"inputs": [SIZED | {"parameters": {"binary_data_size": 2}}]}, b"\0\0", "bad_tensor", "found 2 bytes that end in element 0"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_the_expectation(client, document, binary, code, message):
    answer = infer(client, document) if binary is None else infer_bytes(client, document, binary)
    assert error_of(answer) == (400, code)
    assert message in answer.json()["message"]


@pytest.mark.parametrize("length", ["-1", "x", "9" * 30, "1000000"])
def test_a_wrong_length_of_the_json_is_refused(client, length):
    answer = infer_bytes(client, {"inputs": [SIZED]}, LONG, **{"Inference-Header-Content-Length": length})
    assert error_of(answer) == (400, "bad_tensor") and "Inference-Header-Content-Length: found" in answer.json()["message"]


def test_no_json_is_refused(client):
    assert error_of(requests.post(f"{client.base}/v2/models/fake/infer", data=b"{", timeout=20)) == (400, "bad_json")


def test_the_queue_and_the_body_have_the_limits_of_a_batch(serve):
    engine = RedEngine()
    engine.gate.clear()
    with serve(engine, max_batch=2, max_queued=2) as client:
        waiting = in_parallel(client, 2)
        wait_for(lambda: client.service._in_progress == 2)
        answer = infer(client, {"inputs": [tensor(IMAGES)]})
        assert error_of(answer) == (429, "overloaded") and answer.headers["Retry-After"] == "1"
        assert error_of(infer(client, {"inputs": [tensor([b"\0" * 500_000])]})) == (413, "body_too_large")
        engine.gate.set()
        assert [future.result().status_code for future in waiting] == [200, 200]


def test_a_key_is_needed_except_for_health(serve, tmp_path):
    (tmp_path / "keys").write_text(line("lab", LAB) + "\n" + line("slow", "slow-key-1", "megapixels_per_s=0.001"))
    large = encode_image(draw_image((1000, 900)), "PNG")
    with serve(api_keys=str(tmp_path / "keys"), request_timeout_s=60.0) as client:
        document = {"inputs": [tensor(IMAGES)]}
        assert error_of(infer(client, document)) == (401, "missing_key")
        assert error_of(infer(client, document, **bearer("wrong"))) == (403, "wrong_key")
        assert infer(client, document, **bearer(LAB)).status_code == 200
        assert error_of(client.get("/v2/models/fake")) == (401, "missing_key") and client.get("/v2/models/fake", **bearer(LAB)).ok
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/fake/ready"):
            assert client.get(path).status_code == 200, path
        answers = [infer(client, {"inputs": [tensor([large])]}, **bearer("slow-key-1")) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert int(answers[2].headers["Retry-After"]) > 1


def test_a_network_that_fails_is_an_internal_error_and_not_ready(serve):
    engine = RedEngine()
    engine.failure = RuntimeError("secret")
    with serve(engine) as client:
        for _ in range(3):
            answer = infer(client, {"inputs": [tensor(IMAGES)]})
            assert error_of(answer) == (500, "internal_error") and "secret" not in answer.text
        for path in ("/v2/health/ready", "/v2/models/fake/ready"):
            assert error_of(client.get(path)) == (503, "not_ready")
        assert client.get("/v2/health/live").json() == {"live": True}


def test_health_and_metadata_describe_the_server_and_the_model(client):
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/fake/ready").json() == {"name": "fake", "ready": True}
    server = client.get("/v2").json()
    assert server["name"] == "yolor_ray" and server["extensions"] == ["binary_tensor_data"]
    model = client.get("/v2/models/fake").json()
    assert model["inputs"] == [{"name": "images", "datatype": "BYTES", "shape": [-1]}]
    assert [(output["name"], output["datatype"], output["shape"]) for output in model["outputs"]] == [
        ("boxes", "FP32", [-1, 4]),
        ("scores", "FP32", [-1]),
        ("labels", "BYTES", [-1]),
        ("image_index", "INT64", [-1]),
        ("detections", "BYTES", [-1]),
    ]
    assert model["platform"] == "yolor_ray_red"


def test_another_model_is_not_found(client):
    for answer in (infer(client, {}, "other"), client.get("/v2/models/other"), client.get("/v2/models/other/ready")):
        assert error_of(answer) == (404, "not_found")
        assert answer.json()["message"] == "found the model 'other' in the path, expected 'fake'"


def test_openapi_describes_the_request(client):
    operation = client.get("/openapi.json").json()["paths"]["/v2/models/{name}/infer"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate({"id": "1", "parameters": {"iou": 0.5}, "inputs": [tensor(IMAGES)], "outputs": [{"name": "boxes"}]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"inputs": []}, schema)
    assert {"400", "404", "429"} <= operation["responses"].keys()

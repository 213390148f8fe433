"""Responses for a network with all tasks, and for one that only detects; the red rectangle is the object."""

import base64
import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as run_length

from http_server import served
from red_engine import ALL_TASKS, IMAGE_CLASSES, KEYPOINTS, RECTANGLE, RedEngine, encode_image
from yolor_ray.data.images.letterbox import Letterbox
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.views import OpenImage, View
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.serve import response
from yolor_ray.serve.engine import DetectOptions
from yolor_ray.serve.http.errors import ApiError
from yolor_ray.serve.http.schemas import Detection
from yolor_ray.serve.response import detections_json, locate, model_json

JPEG = encode_image()
FIELDS = {"masks": "mask", "keypoints": "keypoints", "embeddings": "embedding"}


@pytest.fixture(scope="module")
def client():
    with served(RedEngine(tasks=ALL_TASKS)) as client:
        yield client


@pytest.fixture(scope="module")
def body(client):
    return client.post(JPEG).json()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_run_lengths_polygons_and_area_describe_the_same_mask(body):
    mask = body["detections"][0]["mask"]
    assert mask["rle"]["size"] == [120, 200]
    pixels = run_length.decode({"size": mask["rle"]["size"], "counts": mask["rle"]["counts"].encode()})
    expected = np.zeros((120, 200), np.uint8)
    x1, y1, x2, y2 = RECTANGLE
    expected[y1:y2, x1:x2] = 1
    assert (pixels & expected).sum() / (pixels | expected).sum() > 0.9
    assert mask["area"] == pixels.sum()
    [polygon] = mask["polygons"]
    corners = np.array(polygon, np.float32).reshape(-1, 2)
    assert cv2.contourArea(corners) == pytest.approx(mask["area"], rel=0.01)
    np.testing.assert_allclose([*corners.min(axis=0), *corners.max(axis=0)], RECTANGLE, atol=3)


def test_keypoints_have_names_and_lie_in_the_image(body):
    corner, middle = body["detections"][0]["keypoints"]
    assert (corner["name"], middle["name"]) == KEYPOINTS
    assert (corner["confidence"], middle["confidence"]) == (0.5, 1.0)
    assert (corner["x"], corner["y"]) == pytest.approx(RECTANGLE[:2], abs=2)
    assert (middle["x"], middle["y"]) == pytest.approx((60, 60), abs=2)


def test_an_embedding_is_base64_of_little_endian_float32(body):
    numbers = np.frombuffer(base64.b64decode(body["detections"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(numbers, np.eye(64)[3])


def test_all_labels_of_the_image_are_sorted_by_probability(body):
    assert body["labels"] == [
        {"label": IMAGE_CLASSES[2], "label_id": 2, "confidence": 0.75},
        {"label": IMAGE_CLASSES[0], "label_id": 0, "confidence": 0.25},
        {"label": IMAGE_CLASSES[1], "label_id": 1, "confidence": 0.125},
    ]


def test_an_image_without_objects_still_has_labels(client):
    body = client.post(encode_image(Image.new("RGB", (200, 120)))).json()
    assert body["detections"] == [] and len(body["labels"]) == 3


@pytest.mark.parametrize("switch", [*FIELDS, "labels"])
def test_each_task_is_switched_off_alone(client, body, switch):
    reduced = client.post(JPEG, query=f"?{switch}=false").json()
    [detection], [full] = reduced["detections"], body["detections"]
    assert detection == {name: value for name, value in full.items() if name != FIELDS.get(switch)}
    assert reduced.get("labels") == (None if switch == "labels" else body["labels"])
    assert body.keys() - reduced.keys() == ({"labels"} if switch == "labels" else set())


def test_a_network_that_only_detects_returns_boxes_alone_whatever_the_request(serve):
    with serve() as client:
        plain, explicit = client.post(JPEG).json(), client.post(JPEG, query="?masks=true&keypoints=1&labels=true&embeddings=true").json()
        card = client.get("/v1/model").json()
    for body in (plain, explicit):
        assert list(body) == ["request_id", "model", "image", "detections", "timing_ms"]
        assert [list(detection) for detection in body["detections"]] == [["box", "class", "class_id", "confidence"]]
        assert list(body["timing_ms"]) == ["body", "decode", "queue", "network"]
    assert card["tasks"] == ["detect"]
    assert not {"image_classes", "keypoint_names", "class_keypoints", "embedding_numbers"} & card.keys()


def test_the_model_card_lists_tasks_and_their_names(client):
    card = client.get("/v1/model").json()
    assert card["tasks"] == list(ALL_TASKS)
    assert (card["image_classes"], card["keypoint_names"], card["embedding_numbers"]) == (list(IMAGE_CLASSES), list(KEYPOINTS), 64)


def test_openapi_describes_parameters_bodies_and_errors(client):
    api = client.get("/openapi.json").json()
    detect = api["paths"]["/v1/detect"]["post"]
    names = {"confidence", "iou", "max_detections", "classes", "tile", "overlap", "release", "masks", "keypoints", "labels", "embeddings"}
    assert {parameter["name"] for parameter in detect["parameters"]} == names
    assert set(detect["requestBody"]["content"]) == {"image/*", "multipart/form-data", "application/json"}
    assert {"200", "400", "408", "413", "415", "422", "429", "500", "504"} <= set(detect["responses"])
    assert "class" in api["components"]["schemas"]["Detection"]["properties"]
    ours = {path for path in api["paths"] if not path.startswith("/v2")}
    by_model = {"/v1/models", "/v1/models/{name}", "/v1/models/{name}/detect", "/v1/models/{name}/detect/batch"}
    assert ours == {"/v1/detect", "/v1/detect/batch", "/v1/model", "/healthz", "/readyz", "/metrics", *by_model}
    assert {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/{name}", "/v2/models/{name}/infer"} <= set(api["paths"])


def test_openapi_declares_optional_fields_as_absent_and_never_null(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for schema, optional in (("Detection", {"mask", "keypoints", "embedding"}), ("Answer", {"labels"})):
        assert set(schemas[schema]["properties"]) - set(schemas[schema]["required"]) == optional
        for name in optional:
            assert "null" not in json.dumps(schemas[schema]["properties"][name])
            assert "bsent" in schemas[schema]["properties"][name]["description"]


def answered(info, found, options):
    """Return the fields of the answer about detections in an image of LETTERBOX."""
    image = OpenImage(LETTERBOX.width, LETTERBOX.height, iter(()), 1)
    located = locate(info, image, [(View(np.zeros((640, 640, 3), np.uint8), LETTERBOX), found)], options)
    return detections_json(info, located, image, options)


INFO = WeightsInfo("many", ("thing",), 640, tasks=("detect", "segment"))
LETTERBOX = Letterbox(0.5, 0, 0, 1280, 1280)


def many_objects(count):
    """Return detections of 12 to 40 input pixels, each with a mask of several parts."""
    generator = torch.Generator().manual_seed(1)
    centres, sides = torch.rand(count, 2, generator=generator) * 600, 12 + 28 * torch.rand(count, 1, generator=generator)
    boxes = torch.cat((centres, centres + sides), 1).clamp(max=640)
    rows = torch.sin(torch.arange(160) / 1.5)
    prototypes = torch.stack((rows[:, None] + rows, torch.ones(160, 160)))
    masks = {"coefficients": torch.tensor([[1.0, 0.3]]).repeat(count, 1), "prototypes": prototypes}
    return Detections(boxes, torch.full((count,), 0.5), torch.zeros(count, dtype=torch.long), **masks)


def test_a_detection_lists_the_keypoints_of_its_class_in_the_order_of_the_class():
    keypoints = {"keypoint_names": ("head", "tail"), "class_keypoints": {"fly": ("tail", "head")}}
    info = WeightsInfo("flies", ("fly", "cell"), 640, tasks=("detect", "pose"), **keypoints)
    points = torch.tensor([[[1, 2, 0.5], [3, 4, 0.75]]]).repeat(2, 1, 1)
    found = Detections(torch.tensor([[0.0, 0, 9, 9]] * 2), torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), keypoints=points)
    fly, cell = answered(info, found, DetectOptions(0.1, 0.5, 9))["detections"]
    assert fly["keypoints"] == [
        {"name": "tail", "x": 6, "y": 8, "confidence": 0.75},
        {"name": "head", "x": 2, "y": 4, "confidence": 0.5},
    ]
    assert cell["keypoints"] == []
    assert Detection.model_validate(cell).keypoints == []
    assert model_json(info)["class_keypoints"] == {"fly": ["tail", "head"]}


def test_without_masks_no_mask_is_computed():
    broken = dataclasses.replace(many_objects(3), prototypes=None)
    boxes = answered(INFO, broken, DetectOptions(0.1, 0.5, 9, masks=False))["detections"]
    assert [list(detection) for detection in boxes] == [["box", "class", "class_id", "confidence"]] * 3
    with pytest.raises(AssertionError):
        answered(INFO, broken, DetectOptions(0.1, 0.5, 9))


def test_masks_of_300_objects_take_under_half_a_megabyte():
    body = answered(INFO, many_objects(300), DetectOptions(0.1, 0.5, 300))
    assert sum(detection["mask"]["area"] > 0 for detection in body["detections"]) > 290
    assert len(json.dumps(body["detections"], separators=(",", ":"))) < 500_000


def test_a_request_for_too_many_mask_pixels_is_refused_with_advice(monkeypatch):
    monkeypatch.setattr(response, "MAX_MASK_PIXELS", 10_000)
    with pytest.raises(ApiError, match=r"found 300 objects whose boxes have \d+ pixels, expected at most 10000 for masks") as caught:
        answered(INFO, many_objects(300), DetectOptions(0.1, 0.5, 300))
    assert caught.value.code == "masks_too_large" and "(masks=false)" in str(caught.value)
    assert len(answered(INFO, many_objects(300), DetectOptions(0.1, 0.5, 300, masks=False))["detections"]) == 300

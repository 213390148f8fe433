"""The real engine on a tiny random network: its results are those of the network, in pixels of the image."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from red_engine import draw_image, encode_image, serve_settings
from yolor_ray.config import NetworkConfig
from yolor_ray.config.network import TASKS
from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.letterbox import Letterbox, letterbox
from yolor_ray.errors import ImageError
from yolor_ray.inference import detect as detect_module
from yolor_ray.inference.detect import PREDICTION_OUTPUTS, Detections, detect, predict
from yolor_ray.inference.engine_choice import RunnableModel
from yolor_ray.inference.views import Tiling, View, open_image
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights, save_weights
from yolor_ray.serve.engine import DetectOptions, LocalEngine, TimedDetections

SIDE = 96
TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(16, 16, 32, 32), depths=(1, 1, 1, 1), neck_depth=1)
ANCHORS = torch.tensor([[[12.0, 12], [20, 20], [30, 30]], [[40, 40], [60, 60], [80, 80]], [[50, 90], [90, 50], [90, 90]]])
OPTIONS = DetectOptions(0.01, 0.5, 20)


def view_of(data):
    """Return the view of an image as a whole."""
    [view] = open_image(data, SIDE, Tiling()).views
    return view


def random_weights(url, tasks, varied=False, thresholds=None):
    """Publish a network; the outputs of a varied network depend strongly on the image, so that no two predictions tie."""
    torch.manual_seed(0)
    network = Yolor(replace(TINY, tasks=tasks), 3, ANCHORS, image_classes=4, keypoints=2, identities=(5,))
    for level in network.head.levels:
        torch.nn.init.normal_(level.predict.bias, std=1.0)
    if varied:
        vary_outputs(network)
    info = WeightsInfo("tiny", ("a", "b", "c"), SIDE, image_classes=tuple("efgh"), keypoint_names=("i", "j"), thresholds=thresholds or {})
    save_weights(url, network.eval(), info)
    return url


@torch.no_grad()
def vary_outputs(network):
    """Set the statistics of batch norm by one batch; without them small activations vanish from layer to layer."""
    for level in network.head.levels:
        torch.nn.init.normal_(level.predict.weight, std=0.05)
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    network.train()(torch.rand(4, 3, SIDE, SIDE))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_weights(str(tmp_path_factory.mktemp("weights")), ("detect",))


@pytest.fixture(scope="module")
def engine(weights):
    return LocalEngine(serve_settings(weights=weights, max_batch=2, engine="torch"))


def png_images():
    shapes = [(200, 120), (120, 200), (50, 60), (96, 96)]
    return [encode_image(draw_image(size, (5, 5, 40, 30)), "PNG") for size in shapes]


def assert_same(result, expected, rounding=1e-4):
    """Compare all fields of two results; a field is None in both or in neither."""
    for field in fields(Detections):
        actual, desired = getattr(result.detections, field.name), getattr(expected.detections, field.name)
        assert (actual is None) == (desired is None)
        if actual is not None:
            # Boxes and keypoints are in pixels, all other fields have the size of confidences.
            np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=0.02 if field.name in ("boxes_xyxy", "keypoints") else rounding)


def test_boxes_are_those_of_the_unfused_network_inside_the_image(engine, weights):
    network, info = load_weights(weights)
    assert not info.fused and engine.info.fused
    data, out = png_images()[0], np.empty((SIDE, SIDE, 3), np.uint8)
    position = letterbox(decode(data), 200, 120, out)
    [expected] = predict(network, torch.from_numpy(out)[None], confidence=0.01, iou=0.5, max_detections=20)
    [result] = engine.detect([(view_of(data), OPTIONS)])
    boxes = position.to_image(expected.boxes_xyxy.numpy())
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    assert inside.sum() > 5
    np.testing.assert_allclose(result.detections.boxes_xyxy, expected.boxes_xyxy[torch.from_numpy(inside)], atol=0.05)


def test_an_image_has_the_same_result_in_a_batch_and_alone(engine):
    images = [(view_of(data), OPTIONS) for data in png_images()]
    for result, image in zip(engine.detect(images), images, strict=True):
        assert_same(result, engine.detect([image])[0])


def test_requests_with_different_options_do_not_affect_each_other_in_a_batch(engine):
    prepared = view_of(png_images()[0])
    requests = [OPTIONS, DetectOptions(0.3, 0.5, 20), DetectOptions(0.01, 0.5, 3), DetectOptions(0.01, 0.9, 20), DetectOptions(1.0, 0.2, 1)]
    together = engine.detect([(prepared, options) for options in requests])
    for result, options in zip(together, requests, strict=True):
        assert_same(result, engine.detect([(prepared, options)])[0])
        confidences = result.detections.confidences
        assert (confidences >= options.confidence).all() and len(confidences) <= options.max_detections
    assert len(together[0].detections.labels) > len(together[2].detections.labels) == 3
    assert len(together[4].detections.labels) == 0


def test_the_best_confidence_of_each_class_limits_its_boxes(tmp_path):
    url = random_weights(str(tmp_path), ("detect",), varied=True, thresholds={"a": 0.283, "b": 0.16})
    engine = LocalEngine(serve_settings(weights=url, max_batch=2, engine="torch"))
    prepared = view_of(png_images()[0])
    [every] = engine.detect([(prepared, DetectOptions(0.001, 0.5, 1000))])
    least = torch.tensor([0.283, 0.16, 0.25])[every.detections.labels]
    expected = replace(every, detections=_rows(every.detections, every.detections.confidences > least))
    kept = expected.detections.labels.bincount(minlength=3)
    assert len(every.detections.labels) > kept.sum() and (kept > 0).all(), "each class is limited, and found"
    requests = [DetectOptions(0.001, 0.5, 3), DetectOptions("best", 0.5, 1000), DetectOptions("best", 0.5, 5)]
    _, best, few = engine.detect([(prepared, options) for options in requests])
    assert_same(best, expected)
    assert_same(few, replace(expected, detections=_rows(expected.detections, slice(5))))


def test_the_classes_of_a_request_are_the_only_ones_found_and_fill_its_limit(tmp_path):
    url = random_weights(str(tmp_path), ("detect",), varied=True, thresholds={"b": 0.16})
    engine = LocalEngine(serve_settings(weights=url, max_batch=4, engine="torch"))
    prepared, (low, best) = view_of(png_images()[0]), (DetectOptions(confidence, 0.5, 1000) for confidence in (0.16, "best"))
    every, confident = engine.detect([(prepared, low), (prepared, best)])
    requests = [replace(low, classes=("c", "a")), replace(low, classes=("a", "c", "a"), max_detections=4), replace(best, classes=("b",))]
    both, few, one = engine.detect([(prepared, options) for options in requests])
    expected = _rows(every.detections, every.detections.labels != 1)
    assert 4 < len(expected.labels) < len(every.detections.labels) < low.max_detections
    assert_same(both, replace(both, detections=expected))
    assert_same(few, replace(few, detections=_rows(expected, slice(4))))
    assert_same(one, replace(one, detections=_rows(confident.detections, confident.detections.labels == 1)))
    assert len(one.detections.labels) > 0


def _rows(detections, rows):
    return replace(detections, **{name: getattr(detections, name)[rows] for name in ("boxes_xyxy", "confidences", "labels")})


def test_every_box_lies_in_the_image_and_has_an_area(engine):
    for size in [(200, 120), (3, 200), (200, 3)]:
        prepared = view_of(encode_image(draw_image(size, (0, 0, 2, 2)), "PNG"))
        [result] = engine.detect([(prepared, DetectOptions(0.001, 0.9, 300))])
        boxes_xyxy = prepared.letterbox.to_image(result.detections.boxes_xyxy.numpy())
        assert (boxes_xyxy[:, :2] >= 0).all() and (boxes_xyxy[:, 2:] <= size).all()
        assert (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all()


def test_an_image_over_the_limit_is_refused_before_decoding():
    with pytest.raises(ImageError, match="1001000") as caught:
        open_image(encode_image(draw_image((1001, 1000)), "PNG"), SIDE, Tiling(), max_pixels=10**6)
    assert caught.value.code == "image_too_large"


def test_a_batch_that_does_not_fit_into_memory_is_halved(engine, monkeypatch):
    images = [(view_of(data), OPTIONS) for data in png_images()]
    expected, sizes = engine.detect(images), []

    def detect_one_image(predictor, batch, *arguments, **limits):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return detect(predictor, batch, *arguments, **limits)

    monkeypatch.setattr(detect_module, "detect", detect_one_image)
    for result, desired in zip(engine.detect(images), expected, strict=True):
        assert_same(result, desired)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


def test_the_limits_select_the_same_predictions_for_every_task(weights):
    """The second box lies in the grey bars of a wide image; keypoints, embeddings and coefficients hold the prediction's number."""
    numbers = torch.arange(4.0)[None, :, None]
    outputs = {
        "boxes_xyxy": torch.tensor([[[8.0, 40, 20, 60], [30, 0, 40, 8], [50, 40, 60, 60], [70, 40, 90, 60]]]),
        "scores": torch.tensor([[[0.9, 0, 0], [0, 0.8, 0], [0, 0, 0.7], [0.6, 0, 0]]]),
        "keypoints": numbers[..., None].expand(1, 4, 2, 3),
        "embeddings": numbers.expand(1, 4, 8),
        "coefficients": numbers,
        "prototypes": torch.ones(1, 1, SIDE // 4, SIDE // 4),
        "image_labels": torch.tensor([[0.3, 0.4]]),
    }
    engine = LocalEngine(
        serve_settings(weights=weights, engine="torch"), lambda *_, **__: RunnableModel("fake", lambda _: outputs, "float32", 1, 0.0)
    )
    prepared = view_of(png_images()[0])
    for options, kept in ((OPTIONS, [0, 2, 3]), (DetectOptions(0.65, 0.5, 20), [0, 2]), (DetectOptions(0.01, 0.5, 1), [0])):
        [result] = engine.detect([(prepared, options)])
        assert result.detections.labels.tolist() == [[0, 1, 2, 0][number] for number in kept]
        for values in (result.detections.keypoints[:, 0, 0], result.detections.embeddings[:, 0], result.detections.coefficients[:, 0]):
            assert values.tolist() == kept
        assert torch.equal(result.detections.prototypes, outputs["prototypes"][0])
        assert torch.equal(result.detections.image_labels, outputs["image_labels"][0])


def test_the_fused_network_predicts_every_task_as_the_unfused_one(tmp_path):
    network, info = load_weights(random_weights(str(tmp_path), TASKS, varied=True))
    engine = LocalEngine(serve_settings(weights=str(tmp_path), engine="torch"))
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    [expected] = predict(network, torch.from_numpy(noise)[None], confidence=0.01, iou=0.5, max_detections=20)
    [result] = engine.detect([(View(noise, Letterbox(1.0, 0, 0, SIDE, SIDE)), OPTIONS)])
    assert not info.fused and engine.info.tasks == TASKS
    boxes_xyxy = expected.boxes_xyxy.clamp(0, SIDE)
    inside = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(1)
    assert len(expected.confidences.unique()) == 20 and inside.sum() > 5
    rows = {name: getattr(expected, name)[inside] for name in ("boxes_xyxy", "confidences", "labels", *PREDICTION_OUTPUTS)}
    assert_same(result, TimedDetections(replace(expected, **rows), 0.0), rounding=2e-3)


def test_a_network_without_other_tasks_returns_boxes_alone(engine):
    [result] = engine.detect([(view_of(png_images()[0]), OPTIONS)])
    outputs = {field.name for field in fields(Detections) if getattr(result.detections, field.name) is not None}
    assert outputs == {"boxes_xyxy", "confidences", "labels"}


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_other_engines_return_the_same_for_batches_of_any_size(name, engine, weights):
    pytest.importorskip(name)
    pytest.importorskip("onnx")
    other = LocalEngine(serve_settings(weights=weights, engine=name))
    assert (other.name, engine.name) == (name, "torch")
    images = [(view_of(data), OPTIONS) for data in png_images()]
    for batch in (images[:1], images):
        for result, desired in zip(other.detect(batch), engine.detect(batch), strict=True):
            assert len(result.detections.labels) == 20
            assert_same(result, desired)


def test_the_engine_runs_the_model_chosen_for_the_settings(weights):
    calls, outputs = [], {"boxes_xyxy": torch.tensor([[[8.0, 8, 48, 48]]]), "scores": torch.tensor([[[0.1, 0.9, 0.2]]])}

    def choose(network, info, **options):
        calls.append((info.image_px, options))
        return RunnableModel("chosen", lambda _: outputs, "bfloat16", 1, 0.0)

    engine = LocalEngine(serve_settings(weights=weights, engine="fastest", precision="bfloat16"), choose)
    assert calls == [(SIDE, {"engine": "fastest", "precision": "bfloat16"})]
    [result] = engine.detect([(view_of(png_images()[3]), DetectOptions(0.5, 0.5, 5))])
    assert (engine.name, engine.precision, result.detections.labels.tolist()) == ("chosen", "bfloat16", [1])
    np.testing.assert_allclose(result.detections.boxes_xyxy, [[8, 8, 48, 48]])

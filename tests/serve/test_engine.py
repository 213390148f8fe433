"""The real engine on a tiny random network: what comes out is what the network says, in pixels of the image."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from red_engine import encoded, picture, settings
from yolor_ray.config import NetworkConfig
from yolor_ray.config.network import TASKS
from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.letterbox import Letterbox, letterbox
from yolor_ray.errors import ImageError
from yolor_ray.inference import detect as predict_module
from yolor_ray.inference.detect import OF_PREDICTIONS, Detections, detect, predict
from yolor_ray.inference.engine_choice import RunnableModel
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights, save_weights
from yolor_ray.serve.engine import Found, LocalEngine, Options, Prepared

SIDE = 96
TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(16, 16, 32, 32), depths=(1, 1, 1, 1), neck_depth=1)
ANCHORS = torch.tensor([[[12.0, 12], [20, 20], [30, 30]], [[40, 40], [60, 60], [80, 80]], [[50, 90], [90, 50], [90, 90]]])
USUAL = Options(0.01, 0.5, 20)


def random_weights(url, tasks, lively=False):
    """Publish a network; what a lively one says depends much on what it sees, so that no two predictions tie."""
    torch.manual_seed(0)
    network = Yolor(replace(TINY, tasks=tasks), 3, ANCHORS, image_classes=4, keypoints=2, identities=5)
    for level in network.head.levels:
        torch.nn.init.normal_(level.predict.bias, std=1.0)
    if lively:
        liven(network)
    info = WeightsInfo("tiny", ("a", "b", "c"), SIDE, image_classes=tuple("efgh"), keypoint_names=("i", "j"))
    save_weights(url, network.eval(), info)
    return url


@torch.no_grad()
def liven(network):
    """Let batch norm measure a batch, without which what is small at first dwindles from layer to layer."""
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
    return LocalEngine(settings(weights=weights, max_batch=2, engine="torch"))


def pictures():
    shapes = [(200, 120), (120, 200), (50, 60), (96, 96)]
    return [encoded(picture(size, (5, 5, 40, 30)), "PNG") for size in shapes]


def assert_same(found, expected, rounding=1e-4):
    """Compare all that was found; what one of them lacks the other may not have either."""
    for field in fields(Detections):
        one, other = getattr(found.detections, field.name), getattr(expected.detections, field.name)
        assert (one is None) == (other is None)
        if one is not None:
            # Places in pixels, all else in confidences and the like.
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=0.02 if field.name in ("boxes_xyxy", "keypoints") else rounding)


def test_boxes_are_those_of_the_unfused_network_that_lie_in_the_image(engine, weights):
    network, info = load_weights(weights)
    assert not info.fused and engine.info.fused
    data, out = pictures()[0], np.empty((SIDE, SIDE, 3), np.uint8)
    place = letterbox(decode(data), 200, 120, out)
    [expected] = predict(network, torch.from_numpy(out)[None], confidence=0.01, iou=0.5, max_detections=20)
    [found] = engine.detect([(engine.prepare(data), USUAL)])
    boxes = place.to_image(expected.boxes_xyxy.numpy())
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    assert inside.sum() > 5
    np.testing.assert_allclose(found.detections.boxes_xyxy, expected.boxes_xyxy[torch.from_numpy(inside)], atol=0.05)


def test_a_batch_gives_each_image_what_it_gets_alone(engine):
    images = [(engine.prepare(data), USUAL) for data in pictures()]
    for found, image in zip(engine.detect(images), images, strict=True):
        assert_same(found, engine.detect([image])[0])


def test_requests_with_different_options_share_a_batch_without_influence(engine):
    prepared = engine.prepare(pictures()[0])
    asked = [USUAL, Options(0.3, 0.5, 20), Options(0.01, 0.5, 3), Options(0.01, 0.9, 20), Options(1.0, 0.2, 1)]
    together = engine.detect([(prepared, options) for options in asked])
    for found, options in zip(together, asked, strict=True):
        assert_same(found, engine.detect([(prepared, options)])[0])
        confidences = found.detections.confidences
        assert (confidences >= options.confidence).all() and len(confidences) <= options.max_detections
    assert len(together[0].detections.labels) > len(together[2].detections.labels) == 3
    assert len(together[4].detections.labels) == 0


def test_every_box_lies_in_the_image_and_has_an_area(engine):
    for size in [(200, 120), (3, 200), (200, 3)]:
        prepared = engine.prepare(encoded(picture(size, (0, 0, 2, 2)), "PNG"))
        [found] = engine.detect([(prepared, Options(0.001, 0.9, 300))])
        boxes_xyxy = prepared.place.to_image(found.detections.boxes_xyxy.numpy())
        assert (boxes_xyxy[:, :2] >= 0).all() and (boxes_xyxy[:, 2:] <= size).all()
        assert (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all()


def test_an_image_over_the_limit_is_refused_before_decoding(engine):
    with pytest.raises(ImageError, match="1001000") as caught:
        engine.prepare(encoded(picture((1001, 1000)), "PNG"))
    assert caught.value.code == "image_too_large"


def test_a_batch_that_does_not_fit_into_memory_is_halved(engine, monkeypatch):
    images = [(engine.prepare(data), USUAL) for data in pictures()]
    expected, sizes = engine.detect(images), []

    def small_memory(predictor, batch, *others, **limits):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("no room")
        return detect(predictor, batch, *others, **limits)

    monkeypatch.setattr(predict_module, "detect", small_memory)
    for found, wanted in zip(engine.detect(images), expected, strict=True):
        assert_same(found, wanted)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


def test_what_is_cut_is_cut_from_every_task_alike(weights):
    """The second box lies in the grey bars of a wide image; each prediction's other numbers say which it is."""
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
        settings(weights=weights, engine="torch"), lambda *_, **__: RunnableModel("fake", lambda _: outputs, "float32", 1, 0.0)
    )
    prepared = engine.prepare(pictures()[0])
    for options, left in ((USUAL, [0, 2, 3]), (Options(0.65, 0.5, 20), [0, 2]), (Options(0.01, 0.5, 1), [0])):
        [found] = engine.detect([(prepared, options)])
        assert found.detections.labels.tolist() == [[0, 1, 2, 0][number] for number in left]
        for values in (found.detections.keypoints[:, 0, 0], found.detections.embeddings[:, 0], found.detections.coefficients[:, 0]):
            assert values.tolist() == left
        assert torch.equal(found.detections.prototypes, outputs["prototypes"][0])
        assert torch.equal(found.detections.image_labels, outputs["image_labels"][0])


def test_all_tasks_come_out_of_the_folded_network_as_out_of_the_unfolded(tmp_path):
    network, info = load_weights(random_weights(str(tmp_path), TASKS, lively=True))
    engine = LocalEngine(settings(weights=str(tmp_path), engine="torch"))
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    [expected] = predict(network, torch.from_numpy(noise)[None], confidence=0.01, iou=0.5, max_detections=20)
    [found] = engine.detect([(Prepared(noise, Letterbox(1.0, 0, 0, SIDE, SIDE)), USUAL)])
    assert not info.fused and engine.info.tasks == TASKS
    boxes_xyxy = expected.boxes_xyxy.clamp(0, SIDE)
    inside = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(1)
    assert len(expected.confidences.unique()) == 20 and inside.sum() > 5
    of_objects = {name: getattr(expected, name)[inside] for name in ("boxes_xyxy", "confidences", "labels", *OF_PREDICTIONS)}
    assert_same(found, Found(replace(expected, **of_objects), 0.0), rounding=2e-3)


def test_a_network_that_only_detects_finds_nothing_else(engine):
    [found] = engine.detect([(engine.prepare(pictures()[0]), USUAL)])
    assert {f.name for f in fields(Detections) if getattr(found.detections, f.name) is not None} == {"boxes_xyxy", "confidences", "labels"}


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_other_engines_find_the_same_in_batches_of_any_size(name, engine, weights):
    pytest.importorskip(name)
    pytest.importorskip("onnx")
    other = LocalEngine(settings(weights=weights, engine=name))
    assert (other.name, engine.name) == (name, "torch")
    images = [(engine.prepare(data), USUAL) for data in pictures()]
    for batch in (images[:1], images):
        for found, wanted in zip(other.detect(batch), engine.detect(batch), strict=True):
            assert len(found.detections.labels) == 20
            assert_same(found, wanted)


def test_the_engine_runs_what_was_chosen_for_the_weights_and_the_settings(weights):
    asked, outputs = [], {"boxes_xyxy": torch.tensor([[[8.0, 8, 48, 48]]]), "scores": torch.tensor([[[0.1, 0.9, 0.2]]])}

    def choose(network, info, **wishes):
        asked.append((info.image_px, wishes))
        return RunnableModel("chosen", lambda _: outputs, "bfloat16", 1, 0.0)

    chosen = LocalEngine(settings(weights=weights, engine="fastest", precision="bfloat16"), choose)
    assert asked == [(SIDE, {"engine": "fastest", "precision": "bfloat16"})]
    [found] = chosen.detect([(chosen.prepare(pictures()[3]), Options(0.5, 0.5, 5))])
    assert (chosen.name, chosen.precision, found.detections.labels.tolist()) == ("chosen", "bfloat16", [1])
    np.testing.assert_allclose(found.detections.boxes_xyxy, [[8, 8, 48, 48]])

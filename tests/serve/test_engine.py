"""The real engine on a tiny random network: what comes out is what the network says, in pixels of the image."""

import numpy as np
import pytest
import torch
from red_engine import encoded, picture, settings

from yolor_ray.config import Network
from yolor_ray.data.decode import decode, letterbox
from yolor_ray.errors import ImageError
from yolor_ray.evaluate.fastest import Form
from yolor_ray.model import predict as predict_module
from yolor_ray.model.network import Yolor
from yolor_ray.model.predict import detect, predict
from yolor_ray.model.weights import WeightsInfo, load_weights, save_weights
from yolor_ray.serve.engine import LocalEngine, Options

SIDE = 96
TINY = Network(stem="reorg", stem_width=8, widths=(16, 16, 32, 32), depths=(1, 1, 1, 1), neck_depth=1)
ANCHORS = torch.tensor([[[12.0, 12], [20, 20], [30, 30]], [[40, 40], [60, 60], [80, 80]], [[50, 90], [90, 50], [90, 90]]])
USUAL = Options(0.01, 0.5, 20)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("weights"))
    torch.manual_seed(0)
    network = Yolor(TINY, 3, ANCHORS)
    for level in network.head.levels:
        torch.nn.init.normal_(level.predict.bias, std=1.0)
    save_weights(url, network.eval(), WeightsInfo("tiny", ("a", "b", "c"), SIDE))
    return url


@pytest.fixture(scope="module")
def engine(weights):
    return LocalEngine(settings(weights=weights, max_batch=2, engine="torch"))


def pictures():
    shapes = [(200, 120), (120, 200), (50, 60), (96, 96)]
    return [encoded(picture(size, (5, 5, 40, 30)), "PNG") for size in shapes]


def assert_same(found, expected):
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=0.02)
    np.testing.assert_allclose(found.confidences, expected.confidences, atol=1e-4)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_boxes_are_those_of_the_unfused_network_mapped_to_the_image(engine, weights):
    network, info = load_weights(weights)
    assert not info.fused and engine.info.fused
    data, out = pictures()[0], np.empty((SIDE, SIDE, 3), np.uint8)
    place = letterbox(decode(data), 200, 120, out)
    [expected] = predict(network, torch.from_numpy(out)[None], confidence=0.01, iou=0.5, max_detections=20)
    [found] = engine.detect([(engine.prepare(data), USUAL)])
    boxes = place.to_image(expected.boxes_xyxy.numpy())
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    assert len(found.boxes_xyxy) > 5
    np.testing.assert_allclose(found.boxes_xyxy, boxes, atol=0.05)


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
        assert (found.confidences >= options.confidence).all() and len(found.labels) <= options.max_detections
    assert len(together[0].labels) > len(together[2].labels) == 3
    assert len(together[4].labels) == 0


def test_every_box_lies_in_the_image_and_has_an_area(engine):
    for size in [(200, 120), (3, 200), (200, 3)]:
        [found] = engine.detect([(engine.prepare(encoded(picture(size, (0, 0, 2, 2)), "PNG")), Options(0.001, 0.9, 300))])
        assert (found.boxes_xyxy[:, :2] >= 0).all() and (found.boxes_xyxy[:, 2:] <= size).all()
        assert (found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all()


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


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_other_engines_find_the_same_in_batches_of_any_size(name, engine, weights):
    pytest.importorskip(name)
    pytest.importorskip("onnx")
    other = LocalEngine(settings(weights=weights, engine=name))
    assert (other.name, engine.name) == (name, "torch")
    images = [(engine.prepare(data), USUAL) for data in pictures()]
    for batch in (images[:1], images):
        for found, wanted in zip(other.detect(batch), engine.detect(batch), strict=True):
            assert len(found.labels) == 20
            assert_same(found, wanted)


def test_the_engine_runs_what_was_chosen_for_the_weights_and_the_settings(weights):
    asked = []

    def choose(network, info, **wishes):
        asked.append((info.image_px, wishes))
        return Form("chosen", lambda pixels: (torch.tensor([[[8.0, 8, 48, 48]]]), torch.tensor([[[0.1, 0.9, 0.2]]])), "bfloat16", 1, 0.0)

    chosen = LocalEngine(settings(weights=weights, engine="fastest", precision="bfloat16"), choose)
    assert asked == [(SIDE, {"engine": "fastest", "precision": "bfloat16"})]
    [found] = chosen.detect([(chosen.prepare(pictures()[3]), Options(0.5, 0.5, 5))])
    assert (chosen.name, chosen.precision, found.labels.tolist()) == ("chosen", "bfloat16", [1])
    np.testing.assert_allclose(found.boxes_xyxy, [[8, 8, 48, 48]])

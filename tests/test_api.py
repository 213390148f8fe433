"""The Python API: each kind of image gives the same objects, a list is batched, and errors name the image."""

import io
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import yolor_ray as yr
from yolor_ray.config import NetworkConfig
from yolor_ray.config.network import TASKS
from yolor_ray.errors import ConfigError, ImageError, StorageError, WeightsError
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights, save_weights

SIDE = 96
ANCHORS = torch.tensor([[[12.0, 12], [20, 20], [30, 30]], [[40, 40], [60, 60], [80, 80]], [[50, 90], [90, 50], [90, 90]]])
LOW = {"confidence": 0.01, "max_detections": 20}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random network with all tasks, whose outputs depend on the image."""
    torch.manual_seed(0)
    config = NetworkConfig(stem="reorg", stem_width=8, widths=(16, 16, 32, 32), depths=(1, 1, 1, 1), neck_depth=1, tasks=TASKS)
    network = Yolor(config, 3, ANCHORS, image_classes=2, keypoints=2, identities=(5,))
    for level in network.head.levels:
        torch.nn.init.normal_(level.predict.bias, std=1.0)
        torch.nn.init.normal_(level.predict.weight, std=0.05)
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.rand(4, 3, SIDE, SIDE))
    url = str(tmp_path_factory.mktemp("weights"))
    info = WeightsInfo("tiny", ("ant", "bee", "cat"), SIDE, image_classes=("day", "night"), keypoint_names=("head", "tail"))
    save_weights(url, network.eval(), info)
    return url


@pytest.fixture(scope="module")
def detector(weights: str) -> yr.Detector:
    return yr.Detector(weights, device="cpu")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


def encoded(pixels: np.ndarray, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def assert_equal(result: yr.Result, expected: yr.Result) -> None:
    assert (result.width, result.height, result.classes) == (expected.width, expected.height, expected.classes)
    np.testing.assert_allclose(result.boxes_xyxy, expected.boxes_xyxy, atol=1e-3)
    np.testing.assert_allclose(result.confidences, expected.confidences, atol=1e-5)
    assert result.masks == expected.masks


def test_an_import_of_the_package_brings_no_heavy_library():
    program = "import sys, yolor_ray; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "numpy", "pyarrow", "cv2", "matplotlib", "tyro", "PIL"} & set(loaded)


def test_every_name_of_the_api_is_there_and_jobs_stay_callable_after_their_modules_are_imported():
    import yolor_ray.evaluate.run
    import yolor_ray.export.run
    import yolor_ray.pack.run
    import yolor_ray.train.run  # noqa: F401

    assert all(getattr(yr, name) is not None for name in yr.__all__)
    assert set(yr.__all__) <= set(dir(yr))
    assert all(callable(job) for job in (yr.train, yr.pack, yr.evaluate, yr.export))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        yr.trian  # noqa: B018


def test_a_function_that_calls_a_job_can_be_sent_to_a_ray_worker():
    from ray import cloudpickle

    function = cloudpickle.loads(cloudpickle.dumps(lambda config: yr.train(config)))
    assert callable(function)
    assert cloudpickle.loads(cloudpickle.dumps(yr.train)) is yr.train


def test_presets_are_changed_by_dotted_name():
    config = yr.replace_fields(yr.presets["nano"], {"optim.epochs": 30, "data.train": "s3://bucket/train"})
    assert (config.optim.epochs, config.data.train) == (30, "s3://bucket/train")
    with pytest.raises(yr.errors.ConfigError, match=r"optim.epoch: found no setting of that name, expected optim.epochs"):
        yr.replace_fields(yr.presets["nano"], {"optim.epoch": 30})


def test_every_kind_of_image_gives_the_same_objects(detector, pixels, tmp_path):
    data = encoded(pixels)
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    expected = detector(pixels, **LOW)
    assert len(expected) == 20
    for image in (path, str(path), f"file://{path}", data, Image.fromarray(pixels), np.asfortranarray(pixels)):
        assert_equal(detector(image, **LOW), expected)


def test_an_http_url_is_read(detector, pixels, tmp_path):
    (tmp_path / "photo.png").write_bytes(encoded(pixels))
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            assert_equal(detector(f"{url}/photo.png", **LOW), detector(pixels, **LOW))
            with pytest.raises(StorageError, match=r"absent.png: cannot read it: HTTP Error 404"):
                detector(f"{url}/absent.png")
            with pytest.raises(StorageError, match="cannot read it") as failure:
                detector(f"http://me:s3cr3t-w0rd@127.0.0.1:{server.server_port}/a b.png")
            assert "s3cr3t-w0rd" not in str(failure.value)
        finally:
            server.shutdown()
            thread.join()


def test_grey_and_transparent_arrays_are_those_of_their_files(detector, pixels):
    grey = pixels[..., 0]
    assert_equal(detector(grey, **LOW), detector(encoded(grey), **LOW))
    transparent = np.dstack([pixels, pixels[..., :1]])
    assert_equal(detector(transparent, **LOW), detector(encoded(transparent), **LOW))


def test_boxes_are_in_pixels_of_the_displayed_image(detector, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(np.rot90(pixels).copy(), exif=exif)
    assert_equal(detector(turned, **LOW), detector(pixels, **LOW))
    assert_equal(detector(Image.open(io.BytesIO(turned)), **LOW), detector(pixels, **LOW))
    large = detector(np.repeat(np.repeat(pixels, 5, axis=0), 5, axis=1), **LOW)
    assert (large.width, large.height) == (400, 300)
    assert (large.boxes_xyxy[:, 2:] <= (400, 300)).all() and large.boxes_xyxy[:, 2:].max() > 300


def test_a_list_is_batched_and_keeps_its_order(weights, pixels):
    detector = yr.Detector(weights, device="cpu", batch=2)
    images = [pixels, pixels[:, ::-1].copy(), pixels[::-1].copy()]
    results = detector(images, **LOW)
    for image, result in zip(images, results, strict=True):
        assert_equal(result, detector(image, **LOW))
    assert detector([]) == []


def test_each_task_has_its_fields(detector, pixels):
    result = detector(pixels, **LOW)
    assert len(result) == len(result.classes) == len(result.class_ids) == len(result.confidences) == len(result.boxes_xyxy) == 20
    assert result.classes == tuple(detector.classes[index] for index in result.class_ids)
    assert result.masks is not None and result.mask(0).shape == (60, 80)
    assert result.keypoints is not None and result.keypoints.shape == (20, 2, 3) and result.keypoint_names == ("head", "tail")
    assert result.embeddings is not None
    np.testing.assert_allclose(np.linalg.norm(result.embeddings, axis=1), 1, rtol=1e-5)
    assert result.image_labels is not None and result.image_labels.keys() == {"day", "night"}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"found an array of shape \(4, 4, 3\) and type float32, expected uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"found an array of shape \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), "expected 1 to"),
        (b"not an image", "12 bytes: "),
    ],
)
def test_what_is_no_image_is_refused(detector, image, message):
    with pytest.raises(ImageError, match=message):
        detector([image])


def test_the_best_confidence_of_each_class_is_the_default(weights, tmp_path, pixels):
    network, info = load_weights(weights)
    low = yr.Detector(weights, device="cpu")(pixels, confidence=0.01)
    best = dict.fromkeys(info.classes, 1.0) | {low.classes[0]: 0.01}
    save_weights(str(tmp_path), network, replace(info, thresholds=best))
    detector = yr.Detector(tmp_path, device="cpu")
    assert set(detector(pixels).classes) == {low.classes[0]}
    assert detector.thresholds == best
    assert_equal(detector(pixels, confidence=0.01), low)


def test_only_the_named_classes_are_found_also_by_a_single_name(detector, pixels):
    every = detector(pixels, confidence=0.001, max_detections=1000)
    ants = detector(pixels, confidence=0.001, max_detections=1000, classes="ant")
    assert 0 < len(ants) < len(every) < 1000 and set(ants.classes) == {"ant"}
    np.testing.assert_allclose(ants.boxes_xyxy, every.boxes_xyxy[every.class_ids == 0])
    [others] = detector([pixels], confidence=0.001, max_detections=1000, classes=["bee", "cat"])
    assert len(others) + len(ants) == len(every)
    with pytest.raises(ConfigError, match="classes: found 'dog', expected some of ant, bee, cat"):
        detector(pixels, classes="dog")


def test_errors_name_the_file(detector, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ImageError, match=r"notes\.txt: "):
        detector(tmp_path / "notes.txt")
    with pytest.raises(StorageError, match=r"absent\.jpg: not found"):
        detector(tmp_path / "absent.jpg")
    with pytest.raises(ConfigError, match="confidence: found 2"):
        detector(tmp_path / "notes.txt", confidence=2)
    with pytest.raises((WeightsError, StorageError), match=str(Path(tmp_path))):
        yr.Detector(tmp_path)


def test_a_truncated_pil_image_is_an_image_error(detector, pixels):
    with pytest.raises(ImageError, match="found a PIL image that cannot be decoded"):
        detector(Image.open(io.BytesIO(encoded(np.repeat(pixels, 8, axis=0))[:2000])))


def test_weights_may_also_be_given_by_the_named_constructor(weights, detector, pixels):
    assert_equal(yr.Detector.from_weights(weights, device="cpu")(pixels, **LOW), detector(pixels, **LOW))

"""Engine that detects each red and each blue rectangle of an image, so that tests know all predictions without a trained network."""

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw

from yolor_ray.config import NetworkConfig
from yolor_ray.inference.engine_choice import RunnableModel
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights

SIDE = 128
CLASSES = ("red", "blue")
COLOURS = {"red": (230, 20, 20), "blue": (20, 20, 230)}
IMAGE_CLASSES, PROBABILITIES = ("day", "night"), (0.25, 0.75)
KEYPOINTS = ("corner", "middle")
CONFIDENCE = 0.75
PLACES = 64
"""Most rectangles of an image."""
ANCHORS = torch.tensor([[[12.0, 12], [20, 20], [30, 30]], [[40, 40], [60, 60], [80, 80]]])


def choose_colours(network, info, *, engine, precision, budget_s):
    """Stand in for `choose_engine`."""
    return RunnableModel("colours", lambda images: _outputs(images, info), "float32", 1, 0.0)


def _outputs(images, info):
    pixels = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    count = len(pixels)
    boxes, scores = torch.zeros(count, PLACES, 4), torch.zeros(count, PLACES, len(info.classes))
    colours = torch.zeros(count, 2, pixels.shape[1] // 4, pixels.shape[2] // 4)
    for number, image in enumerate(pixels):
        place = 0
        for label, channel in ((0, 0), (1, 2)):
            inside = ((image[..., channel] > 150) & (np.delete(image, channel, axis=2).max(axis=2) < 110)).astype(np.uint8)
            colours[number, label] = torch.from_numpy(inside[2::4, 2::4] * 2.0 - 1)
            for left, top, width, height, area in cv2.connectedComponentsWithStats(inside, connectivity=4)[2][1:]:
                if area >= 12:
                    boxes[number, place] = torch.tensor((left, top, left + width, top + height), dtype=torch.float32)
                    scores[number, place, label] = CONFIDENCE
                    place += 1
    if "segment" not in info.tasks:
        return {"boxes_xyxy": boxes, "scores": scores}
    corners, middles = boxes[..., :2], (boxes[..., :2] + boxes[..., 2:]) / 2
    seen = torch.ones(count, PLACES, 1)
    return {
        "boxes_xyxy": boxes,
        "scores": scores,
        "keypoints": torch.stack((torch.cat((corners, seen), 2), torch.cat((middles, 0.25 * seen), 2)), 2),
        "embeddings": torch.eye(PLACES)[None].expand(count, -1, -1),
        "coefficients": (scores > 0).float(),
        "prototypes": colours,
        "image_labels": torch.tensor(PROBABILITIES).expand(count, -1),
    }


def write_weights(url, tasks=("detect",), seed=0, thresholds=None, class_keypoints=None):
    """Publish weights with these classes, tasks, best confidences and keypoints by class; their tensors depend on the seed."""
    torch.manual_seed(seed)
    config = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 24), depths=(1, 1, 1), levels=2, neck_depth=1, tasks=tasks)
    network = Yolor(config, len(CLASSES), ANCHORS, image_classes=2, keypoints=2, identities=(2,))
    names = {"image_classes": IMAGE_CLASSES, "keypoint_names": KEYPOINTS, "class_keypoints": class_keypoints or {}}
    info = WeightsInfo("colours", CLASSES, SIDE, **names, thresholds=thresholds or {})
    save_weights(str(url), network.eval(), info)
    return str(url)


def draw(size, rectangles):
    """Return a dark image of (width, height) with rectangles (colour, x1, y1, x2, y2)."""
    image = Image.new("RGB", size, (40, 60, 40))
    for colour, x1, y1, x2, y2 in rectangles:
        ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=COLOURS[colour])
    return image

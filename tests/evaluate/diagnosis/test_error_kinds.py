"""Kinds of errors of handmade detections, average precision against COCO's, and what a person is shown of them."""

import numpy as np
import pytest

from yolor_ray.data.shards.records import Objects
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.diagnosis.comparison import ImageBoxes, Kind, compare, compare_all
from yolor_ray.evaluate.diagnosis.curves import average_precision, calibration, class_curves
from yolor_ray.evaluate.diagnosis.error_kinds import error_kinds
from yolor_ray.evaluate.diagnosis.findings import best_images, confusion_matrix, rank_images, suspected_label_errors

CLASSES = ("cat", "dog")


def image_of(truth: list[tuple], detections: list[tuple], image_id: int = 0) -> ImageBoxes:
    """Make an image of objects (box, label, crowd) and detections (box, label, confidence), the most confident first."""
    boxes, labels, crowd = zip(*truth, strict=True) if truth else ((), (), ())
    found, names, confidences = zip(*detections, strict=True) if detections else ((), (), ())
    return ImageBoxes(
        *(image_id, f"{image_id}.jpg", (200, 200)),
        *(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(crowd, bool)),
        *(np.array(found, np.float64).reshape(-1, 4), np.array(names, np.int64), np.array(confidences, np.float64)),
    )


CAT, DOG = (10, 10, 50, 50), (100, 100, 180, 180)
TRUTH = [(CAT, 0, False), (DOG, 1, False)]


@pytest.mark.parametrize(
    ("box", "label", "kind", "obj"),
    [
        (CAT, 0, Kind.RIGHT, 0),
        (CAT, 1, Kind.CLASS, 0),
        ((10, 10, 50, 28), 0, Kind.PLACE, 0),
        ((10, 10, 50, 28), 1, Kind.BOTH, -1),
        ((60, 10, 90, 40), 0, Kind.BACKGROUND, -1),
    ],
)
def test_a_detection_has_the_kind_of_its_error(box, label, kind, obj):
    comparison = compare(image_of(TRUTH, [(box, label, 0.9)]))
    assert comparison.kinds.tolist() == [kind] and comparison.objects.tolist() == [obj]
    assert comparison.found.tolist() == [kind == Kind.RIGHT, False]
    assert comparison.missed.tolist() == [kind in (Kind.BOTH, Kind.BACKGROUND), True]


def test_the_second_detection_of_an_object_is_a_duplicate():
    comparison = compare(image_of(TRUTH, [(CAT, 0, 0.9), ((12, 10, 50, 50), 0, 0.8)]))
    assert comparison.kinds.tolist() == [Kind.RIGHT, Kind.DUPLICATE] and comparison.objects.tolist() == [0, 0]


def test_crowd_regions_are_neither_found_nor_missed():
    comparison = compare(image_of([(DOG, 1, True), (CAT, 0, False)], [((110, 110, 130, 130), 1, 0.9), ((110, 110, 130, 130), 0, 0.8)]))
    assert comparison.kinds.tolist() == [Kind.IGNORED, Kind.BACKGROUND]
    assert comparison.missed.tolist() == [False, True] and not comparison.found.any()


def test_an_image_without_objects_or_detections_is_compared():
    assert compare(image_of([], [(CAT, 0, 0.9)])).kinds.tolist() == [Kind.BACKGROUND]
    assert compare(image_of(TRUTH, [])).missed.all()
    assert not len(compare(image_of([], [])).kinds)


def random_images(seed: int, images: int = 12) -> list[ImageBoxes]:
    """Make images of objects, crowd regions included, and noisy detections of them and of the background."""
    random = np.random.default_rng(seed)
    made = []
    for image_id in range(images):
        corners = random.uniform(0, 150, (random.integers(0, 6), 2)).round(1)
        boxes = [(*corner, *(corner + random.uniform(15, 50, 2).round(1))) for corner in corners]
        truth = [(box, int(random.integers(2)), random.random() < 0.1) for box in boxes]
        around = [(np.array(box) + random.normal(0, 4, 4), label if random.random() < 0.8 else 1 - label) for box, label, _ in truth * 2]
        noise = [(np.array((*corner, *(corner + 20))), int(random.integers(2))) for corner in random.uniform(0, 150, (4, 2))]
        scored = [(tuple(np.float64(box).round(2)), label, round(float(random.random()), 6)) for box, label in around + noise]
        made.append(image_of(truth, sorted(scored, key=lambda row: -row[2]), image_id))
    return made


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_coco(seed):
    images = random_images(seed)
    objects = [
        (image.image_id, 200, 200, Objects(image.truth_xyxy, image.truth_labels, image.crowd, np.full(len(image.crowd), 400.0)))
        for image in images
    ]
    rows = [
        {"image_id": image.image_id, "category_id": int(label), "score": confidence, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for image in images
        for (x1, y1, x2, y2), label, confidence in zip(image.boxes_xyxy.tolist(), image.labels, image.confidences.tolist(), strict=True)
    ]
    expected = coco.measure(coco.make_truth(objects, CLASSES), rows, "bbox").classes
    for name, curve in zip(CLASSES, class_curves(compare_all(images), 2), strict=True):
        assert curve is not None and curve.average_precision == pytest.approx(expected[name].AP50, abs=1e-12)
        assert curve.precision[curve.taken(expected[name].confidence) - 1] > 0


def test_average_precision_of_perfect_and_useless_detections():
    assert average_precision(np.array([0.9, 0.8]), np.array([True, True]), 2) == 1
    assert average_precision(np.array([0.9, 0.8]), np.array([False, False]), 2) == 0


@pytest.mark.parametrize(
    ("detections", "kind", "gain"),
    [
        ([(CAT, 0, 0.9), (DOG, 0, 0.8)], "class", 0.5),
        ([(CAT, 0, 0.9), ((100, 100, 180, 130), 1, 0.8)], "place", 0.5),
        ([(CAT, 1, 0.9), (CAT, 0, 0.8), (DOG, 1, 0.7)], "class", 0.25),
        ([((60, 10, 90, 40), 0, 0.9), (CAT, 0, 0.8), (DOG, 1, 0.7)], "background", 0.25),
        ([(CAT, 0, 0.9)], "missed", 0.5),
    ],
)
def test_the_gain_is_that_of_detections_without_the_kind_of_error(detections, kind, gain):
    images = compare_all([image_of(TRUTH, detections)])
    errors = error_kinds(images, images, 2)
    assert errors[kind].count == 1 and errors[kind].gain == pytest.approx(gain, abs=1e-9)
    assert sum(error.count for error in errors.values()) == 1


@pytest.mark.parametrize("seed", range(4))
def test_no_kind_of_error_costs_less_than_nothing(seed):
    images = compare_all(random_images(seed))
    errors = error_kinds(images, images, 2)
    assert min(error.gain for error in errors.values()) > -1e-9
    wrong = sum(int((comparison.kinds > Kind.RIGHT).sum()) for _, comparison in images)
    assert sum(error.count for name, error in errors.items() if name != "missed") == wrong


def test_errors_are_counted_over_the_threshold_of_their_class():
    image = image_of(TRUTH, [((60, 10, 90, 40), 0, 0.6), ((60, 60, 90, 90), 1, 0.6)])
    over = compare_all([image], np.array([0.5, 0.7]))
    assert error_kinds(over, compare_all([image]), 2)["background"].count == 1


def test_the_confusion_matrix_counts_each_object_and_each_detection():
    images = compare_all([image_of(TRUTH, [(CAT, 1, 0.9), (DOG, 1, 0.8), ((60, 10, 90, 40), 0, 0.7)]), image_of(TRUTH, [], 1)])
    assert confusion_matrix(images, 2).tolist() == [[0, 1, 1], [0, 1, 1], [1, 0, 0]]


def test_images_are_ranked_by_their_f1_score():
    perfect, empty = image_of(TRUTH, [(CAT, 0, 0.9), (DOG, 1, 0.8)], 0), image_of([], [], 1)
    half, none = image_of(TRUTH, [(CAT, 0, 0.9)], 2), image_of(TRUTH, [], 3)
    ranked = rank_images(compare_all([perfect, empty, half, none]))
    assert [image.image_id for image in ranked[:2]] == [3, 2] and ranked[0].score == 0 and ranked[1].score == pytest.approx(2 / 3)
    assert [image.image_id for image in best_images(ranked, 3)] == [0, 2], "an empty image without a detection shows nothing"


def test_confident_detections_that_contradict_the_annotations_are_suspects():
    image = image_of([*TRUTH, ((0, 150, 40, 190), 0, True)], [((60, 10, 90, 40), 0, 0.9), (DOG, 0, 0.8), ((5, 155, 30, 180), 1, 0.7)])
    suspects = suspected_label_errors(compare_all([image]))
    assert [(s.reason, s.label, s.annotated_label) for s in suspects] == [("not annotated", 0, -1), ("other class", 0, 1)]
    doubtful = image_of(TRUTH, [((60, 10, 90, 40), 0, 0.4)])
    found = image_of(TRUTH, [(DOG, 1, 0.95), (DOG, 0, 0.9)])
    assert not suspected_label_errors(compare_all([doubtful, found]))


def test_calibration_compares_confidence_and_share_of_right_detections():
    right = [(CAT, 0, 0.75), (DOG, 1, 0.75)]
    wrong = [((60, 10, 90, 40), 0, 0.75), ((60, 60, 90, 90), 0, 0.75)]
    bins, error = calibration(compare_all([image_of(TRUTH, right + wrong)]))
    assert [(item.confidence, item.precision, item.count) for item in bins] == [(0.75, 0.5, 4)] and error == 0.25
    assert calibration([]) == ([], 0.0)

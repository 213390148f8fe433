import numpy as np
import pytest

from yolor_ray.data.shards.records import Objects
from yolor_ray.evaluate import retrieval
from yolor_ray.evaluate.retrieval import IdentifiedObjects, match_embeddings, retrieval_metrics
from yolor_ray.inference.postprocess import ImageDetections


def _random_objects(seed, objects=40, identities=9, cameras=3, missed=0.1):
    random = np.random.default_rng(seed)
    # Few directions, so that many embeddings are equal.
    embeddings = np.eye(6)[random.integers(0, 6, objects)]
    embeddings[random.random(objects) < missed] = 0
    return IdentifiedObjects(random.integers(0, identities, objects), random.integers(-1, cameras, objects), embeddings)


def _slow_metrics(objects):
    """Compute the definition, ranking by ranking."""
    scores = []
    for query, (identity, camera) in enumerate(zip(objects.identities, objects.cameras, strict=True)):
        others = [g for g in range(len(objects.identities)) if g != query and not (camera >= 0 and objects.cameras[g] == camera)]
        if not any(objects.identities[g] == identity for g in others):
            continue
        if not objects.embeddings[query].any():
            scores.append((0, 0))
            continue
        keys = [
            (not objects.embeddings[g].any(), -float(objects.embeddings[query] @ objects.embeddings[g]), objects.identities[g] == identity)
            for g in others
        ]
        right = [key[2] for key in sorted(keys)]
        ranks = [rank for rank, is_right in enumerate(right, start=1) if is_right]
        scores.append((right[0], np.mean([hits / rank for hits, rank in enumerate(ranks, start=1)])))
    return np.mean(scores, axis=0)


@pytest.mark.parametrize("seed", range(6))
def test_metrics_equal_their_definition(seed):
    objects = _random_objects(seed, cameras=seed % 4)
    metrics = retrieval_metrics(objects)
    assert [metrics["rank1"], metrics["mAP"]] == pytest.approx(_slow_metrics(objects).tolist(), abs=1e-12)


def test_perfect_embeddings_score_one():
    identities = np.array([0, 0, 1, 1, 1, 2, 2])
    assert retrieval_metrics(IdentifiedObjects(identities, np.full(7, -1), np.eye(3)[identities])) == {"rank1": 1, "mAP": 1}


def test_equal_embeddings_never_answer_right():
    direction = np.random.default_rng(0).normal(size=128)
    embeddings = np.tile(direction / np.linalg.norm(direction), (50, 1)).astype(np.float32)
    metrics = retrieval_metrics(IdentifiedObjects(np.arange(50) // 2, np.full(50, -1), embeddings))
    assert metrics["rank1"] == 0 and metrics["mAP"] == pytest.approx(1 / 49)


def test_objects_of_the_querys_camera_are_no_answers():
    # The first two objects are alike and of one camera; the other camera has a right and a wrong answer with equal cosines.
    embeddings = np.eye(3)[[0, 0, 1, 2]]
    cameras = np.array([0, 0, 1, 1])
    assert retrieval_metrics(IdentifiedObjects(np.array([0, 0, 0, 1]), cameras, embeddings))["rank1"] == pytest.approx(1 / 3)
    assert retrieval_metrics(IdentifiedObjects(np.array([0, 0, 0, 1]), np.full(4, -1), embeddings))["rank1"] == pytest.approx(2 / 3)
    assert retrieval_metrics(IdentifiedObjects(np.array([0, 0, 1, 1]), cameras, embeddings)) == {"rank1": -1, "mAP": -1}


def test_metrics_do_not_depend_on_the_number_of_queries_at_once(monkeypatch):
    objects = _random_objects(0)
    expected = retrieval_metrics(objects)
    monkeypatch.setattr(retrieval, "QUERIES_AT_ONCE", 7)
    assert retrieval_metrics(objects) == pytest.approx(expected, abs=1e-12)


def _objects(boxes_xyxy, identities, crowd=None):
    boxes = np.array(boxes_xyxy, np.float32)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd)
    return Objects(boxes, np.zeros(len(boxes), np.int64), crowd, np.ones(len(boxes), np.float32), identities=np.array(identities))


def _detections(boxes_xyxy):
    count = len(boxes_xyxy)
    boxes = np.array(boxes_xyxy, np.float64).reshape(-1, 4)
    return ImageDetections(boxes, np.linspace(0.9, 0.5, count), np.zeros(count, np.int64), embeddings=np.eye(5, dtype=np.float32)[:count])


def test_the_most_confident_detection_represents_one_object():
    objects = _objects([[0, 0, 10, 10], [3, 0, 13, 10], [50, 50, 60, 60]], [7, 8, 9])
    # The first detection overlaps two objects and takes the first; the second detection finds the first object taken.
    detections = _detections([[0, 0, 11, 10], [0, 0, 10, 10], [4, 0, 13, 10], [50, 50, 60, 54]])
    identities, embeddings = match_embeddings(objects, detections)
    assert identities.tolist() == [7, 8, 9]
    assert embeddings.argmax(axis=1).tolist()[:2] == [0, 1]
    assert not embeddings[2].any()


def test_crowd_regions_and_objects_of_unknown_identity_are_left_out():
    objects = _objects([[0, 0, 10, 10]] * 3, [4, -1, 5], crowd=[True, False, False])
    identities, embeddings = match_embeddings(objects, _detections([[0, 0, 10, 10]]))
    assert identities.tolist() == [5] and embeddings.shape == (1, 5)
    assert match_embeddings(objects, _detections([]))[1].shape == (1, 5)

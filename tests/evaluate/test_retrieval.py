import time

import numpy as np
import pytest

from yolor_ray.data.shards.records import Objects
from yolor_ray.evaluate.retrieval import Views, represent, retrieval_metrics
from yolor_ray.inference.postprocess import ImageDetections


def _views(seed, objects=40, identities=9, cameras=3, missed=0.1):
    random = np.random.default_rng(seed)
    # Few directions, so that many are equal.
    embeddings = np.eye(6)[random.integers(0, 6, objects)]
    embeddings[random.random(objects) < missed] = 0
    return Views(random.integers(0, identities, objects), random.integers(-1, cameras, objects), embeddings)


def _slow_metrics(views):
    """The definition, ranking by ranking."""
    found = []
    for query, (identity, camera) in enumerate(zip(views.identities, views.cameras, strict=True)):
        others = [g for g in range(len(views.identities)) if g != query and not (camera >= 0 and views.cameras[g] == camera)]
        if not any(views.identities[g] == identity for g in others):
            continue
        if not views.embeddings[query].any():
            found.append((0, 0))
            continue
        keys = [
            (not views.embeddings[g].any(), -float(views.embeddings[query] @ views.embeddings[g]), views.identities[g] == identity)
            for g in others
        ]
        right = [key[2] for key in sorted(keys)]
        ranks = [rank for rank, is_right in enumerate(right, start=1) if is_right]
        found.append((right[0], np.mean([hits / rank for hits, rank in enumerate(ranks, start=1)])))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("seed", range(6))
def test_numbers_are_those_of_a_ranking_written_out(seed):
    views = _views(seed, cameras=seed % 4)
    found = retrieval_metrics(views)
    assert [found["rank1"], found["mAP"]] == pytest.approx(_slow_metrics(views).tolist(), abs=1e-12)


def test_perfect_embeddings_score_one():
    identities = np.array([0, 0, 1, 1, 1, 2, 2])
    assert retrieval_metrics(Views(identities, np.full(7, -1), np.eye(3)[identities])) == {"rank1": 1, "mAP": 1}


def test_a_network_that_embeds_all_alike_is_never_right():
    angle = np.random.default_rng(0).normal(size=128)
    embeddings = np.tile(angle / np.linalg.norm(angle), (50, 1)).astype(np.float32)
    found = retrieval_metrics(Views(np.arange(50) // 2, np.full(50, -1), embeddings))
    assert found["rank1"] == 0 and found["mAP"] == pytest.approx(1 / 49)


def test_objects_of_the_same_camera_are_no_answers():
    # The first two are alike and of one camera; each then has a right and a wrong answer that it resembles as little.
    embeddings = np.eye(3)[[0, 0, 1, 2]]
    cameras = np.array([0, 0, 1, 1])
    assert retrieval_metrics(Views(np.array([0, 0, 0, 1]), cameras, embeddings))["rank1"] == pytest.approx(1 / 3)
    assert retrieval_metrics(Views(np.array([0, 0, 0, 1]), np.full(4, -1), embeddings))["rank1"] == pytest.approx(2 / 3)
    assert retrieval_metrics(Views(np.array([0, 0, 1, 1]), cameras, embeddings)) == {"rank1": -1, "mAP": -1}


def test_five_thousand_objects_take_seconds():
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(5000, 64)).astype(np.float32)
    start = time.process_time()
    retrieval_metrics(Views(np.arange(5000) // 4, np.full(5000, -1), embeddings))
    assert time.process_time() - start < 20


def _objects(boxes_xyxy, identities, crowd=None):
    boxes = np.array(boxes_xyxy, np.float32)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd)
    return Objects(boxes, np.zeros(len(boxes), np.int64), crowd, np.ones(len(boxes), np.float32), identities=np.array(identities))


def _located(boxes_xyxy):
    count = len(boxes_xyxy)
    boxes = np.array(boxes_xyxy, np.float64).reshape(-1, 4)
    return ImageDetections(boxes, np.linspace(0.9, 0.5, count), np.zeros(count, np.int64), embeddings=np.eye(5, dtype=np.float32)[:count])


def test_the_most_confident_detection_on_an_object_speaks_for_it_and_for_it_alone():
    objects = _objects([[0, 0, 10, 10], [3, 0, 13, 10], [50, 50, 60, 60]], [7, 8, 9])
    # The first is nearest to the first object, though it overlaps both; the second finds that taken.
    located = _located([[0, 0, 11, 10], [0, 0, 10, 10], [4, 0, 13, 10], [50, 50, 60, 54]])
    identities, embeddings = represent(objects, located)
    assert identities.tolist() == [7, 8, 9]
    assert embeddings.argmax(axis=1).tolist()[:2] == [0, 1]
    assert not embeddings[2].any()


def test_crowd_regions_and_objects_of_unknown_identity_are_left_out():
    objects = _objects([[0, 0, 10, 10]] * 3, [4, -1, 5], crowd=[True, False, False])
    identities, embeddings = represent(objects, _located([[0, 0, 10, 10]]))
    assert identities.tolist() == [5] and embeddings.shape == (1, 5)
    assert represent(objects, _located([]))[1].shape == (1, 5)

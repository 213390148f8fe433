import numpy as np
import pytest

from yolor_ray.evaluate.multilabel import LabelScore, average_precision, label_metrics


def _slow_average_precision(scores, positive):
    """Compute the definition: at every distinct threshold, precision times the gain of recall since the threshold above."""
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        selected = scores >= threshold
        recall = (selected & positive).sum() / positive.sum()
        area += (selected & positive).sum() / selected.sum() * (recall - recall_before)
        recall_before = recall
    return area


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_equals_its_definition(seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, (5, 1000)[seed % 2], 60) / 1000
    positive = random.random(60) < 0.3
    assert average_precision(scores, positive) == pytest.approx(_slow_average_precision(scores, positive), abs=1e-12)


def test_average_precision_equals_the_example_of_scikit_learn():
    assert average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == pytest.approx(0.8333, abs=1e-4)


def test_equal_probabilities_score_the_share_of_images_with_the_label():
    assert average_precision(np.full(10, 0.7), np.arange(10) < 3) == pytest.approx(0.3)


def test_unknown_labels_and_labels_without_images_are_not_counted():
    probabilities = np.array([[0.9, 0.8, 0.1], [0.2, 0.9, 0.3], [0.8, 0.1, 0.2]])
    truth = np.array([[1, np.nan, 0], [0, 1, 0], [np.nan, 0, np.nan]])
    metrics, labels = label_metrics(probabilities, truth, ("a", "b", "c"))
    assert labels == {"a": LabelScore(1.0, 1), "b": LabelScore(1.0, 1), "c": LabelScore(-1.0, 0)}
    assert metrics == {"mAP": 1.0, "F1": 1.0}


def test_f1_counts_all_pairs_of_image_and_label_together():
    probabilities = np.array([[0.9, 0.6], [0.5, 0.1], [0.2, 0.3]])
    truth = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    # 2 true positives of 3 predicted labels and of 4 annotated labels.
    assert label_metrics(probabilities, truth, ("a", "b"))[0]["F1"] == pytest.approx(4 / 7)


def test_without_known_labels_nothing_is_measured():
    for truth in (np.full((2, 1), np.nan), np.zeros((0, 1)), np.zeros((2, 1))):
        assert label_metrics(np.zeros(truth.shape), truth, ("a",))[0] == {"mAP": -1, "F1": -1}

"""Left and right keypoints are paired by their names, in many spellings."""

import numpy as np
import pytest

from yolor_ray.data.augment.keypoint_flip import flipped_keypoint_order

COCO = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow"),
    *("left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
)
FLY = (
    *("head", "eyeL", "eyeR", "thorax", "abdomen", "wingL", "wingR"),
    *("forelegL4", "forelegR4", "midlegL4", "midlegR4", "hindlegL4", "hindlegR4"),
)


def test_keypoints_of_persons_and_of_flies_change_sides():
    assert flipped_keypoint_order(COCO).tolist() == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    assert flipped_keypoint_order(FLY).tolist() == [0, 2, 1, 3, 4, 6, 5, 8, 7, 10, 9, 12, 11]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_eye", "right_eye"),
        ("LeftHand", "RightHand"),
        ("handLeft", "handRight"),
        ("LEFT HIP", "RIGHT HIP"),
        ("front-left-paw", "front-right-paw"),
        ("eyeL", "eyeR"),
        ("forelegL4", "forelegR4"),
        ("kneeLFront", "kneeRFront"),
        ("LHip", "RHip"),
        ("L_eye", "R_eye"),
        ("l_eye", "r_eye"),
        ("eye_l", "eye_r"),
        ("l", "r"),
    ],
)
def test_a_left_and_a_right_name_are_a_pair(left, right):
    assert flipped_keypoint_order((left, "middle", right)).tolist() == [2, 1, 0]


@pytest.mark.parametrize("names", [("left_eye", "left_ear"), ("Leg", "Reg"), ("ball", "barr"), ("tail", "tair"), ("eyeL", "eyer"), ()])
def test_a_name_without_an_opposite_keeps_its_index(names):
    assert flipped_keypoint_order(names).tolist() == list(range(len(names)))


def test_flipping_twice_restores_the_order():
    names = (*FLY, *COCO, "left", "LEFT", "R", "xR", "leftL", "rightR")
    order = flipped_keypoint_order(names)
    assert np.array_equal(order[order], np.arange(len(names)))

"""The losses of the tasks beside detection against what they must be for answers made by hand."""

import math
from dataclasses import replace

import pytest
import torch

from yolor_ray.config import LossConfig, NetworkConfig
from yolor_ray.config.network import TASKS
from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Targets, match_level
from yolor_ray.train.losses.classify import classify_loss
from yolor_ray.train.losses.embed import embed_loss
from yolor_ray.train.losses.pose import pose_loss
from yolor_ray.train.losses.segment import segment_loss
from yolor_ray.train.losses.total import LOSSES, loss_parts

CONFIG = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 8, 8), depths=(1, 1, 1), levels=2, neck_depth=1, tasks=TASKS)
ANCHORS = torch.tensor([[[8.0, 10.0], [16.0, 12.0], [12.0, 24.0]], [[30.0, 30.0], [60.0, 32.0], [40.0, 80.0]]])
SIDE = 64
UNSEEN = [[0.0, 0.0, 0.0]] * 2


def instance_map() -> torch.Tensor:
    """Return the left half of the first object and the whole of the second, painted as large as the images."""
    found = torch.zeros(2, 64, 64, dtype=torch.int32)
    found[0, 16:32, 8:16] = 1
    found[1, 24:48, 24:48] = 2
    return found


TARGETS = Targets(
    images=torch.tensor([0, 1]),
    labels=torch.tensor([0, 1]),
    boxes_cxcywh=torch.tensor([[16.0, 24.0, 16.0, 16.0], [36.0, 36.0, 24.0, 24.0]]),
    keypoints=torch.tensor([[[10.0, 18.0, 2.0], [20.0, 30.0, 1.0]], UNSEEN]),
    identities=torch.tensor([2, -1]),
    has_mask=torch.tensor([True, True]),
    instances=instance_map(),
    image_labels=torch.tensor([[1.0, 0.0, math.nan], [math.nan] * 3]),
)
NOTHING = Targets(
    *(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)),
    keypoints=torch.zeros(0, 2, 3),
    identities=torch.zeros(0, dtype=torch.long),
    has_mask=torch.zeros(0, dtype=torch.bool),
    instances=torch.zeros(2, 64, 64, dtype=torch.int32),
    image_labels=torch.full((2, 3), math.nan),
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Yolor(CONFIG, 2, ANCHORS, image_classes=3, keypoints=2, identities=4)


def matches_of(targets):
    return [
        match_level(targets, a, stride, SIDE // stride, SIDE // stride, anchor_ratio=4.0)
        for a, stride in zip(ANCHORS, (8, 16), strict=True)
    ]


def levels(numbers, fill=0.0):
    return [torch.full((2, 3, SIDE // stride, SIDE // stride, numbers), fill) for stride in (8, 16)]


def test_image_labels_that_nobody_knows_do_not_count(network):
    logits = torch.tensor([[20.0, -20.0, 5.0], [9.0, 9.0, 9.0]], requires_grad=True)
    loss = classify_loss([logits], TARGETS, [], network)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert (logits.grad[1] == 0).all() and logits.grad[0, 2] == 0
    wrong = torch.tensor([[0.0, 0.0, 5.0], [9.0, 9.0, 9.0]])
    assert classify_loss([wrong], TARGETS, [], network).item() == pytest.approx(math.log(2))


def test_an_embedding_is_drawn_to_its_own_proxy_alone(network):
    matches = matches_of(TARGETS)
    towards = [torch.zeros_like(level) for level in levels(64)]
    for level in towards:
        level[:] = network.tasks["embed"].proxies[2].detach()
    near = embed_loss(towards, TARGETS, matches, network)
    for level in towards:
        level[:] = network.tasks["embed"].proxies[1].detach()
    assert near.item() < 0.1 < embed_loss(towards, TARGETS, matches, network).item()
    nobody = replace(TARGETS, identities=torch.tensor([-1, -1]))
    assert embed_loss(towards, nobody, matches, network).item() == 0


def perfect_pose(network):
    """Return what the head would have to say for keypoints exactly where they are."""
    raw = levels(6)
    for level, found, anchors, stride in zip(raw, matches_of(TARGETS), ANCHORS, (8, 16), strict=True):
        cells = torch.stack((found.columns, found.rows), dim=-1)
        middle = (cells + 0.5) * stride
        points = TARGETS.keypoints[found.objects]
        offsets = (points[..., :2] - middle[:, None]) / anchors[found.anchors][:, None]
        said = torch.cat((offsets, torch.full_like(points[..., 2:], 20.0)), dim=-1)
        level[found.images, found.anchors, found.rows, found.columns] = said.flatten(1)
    return raw


def test_keypoints_where_they_belong_cost_nothing_and_unlabelled_objects_never_do(network):
    matches, raw = matches_of(TARGETS), perfect_pose(network)
    assert pose_loss(raw, TARGETS, matches, network).item() == pytest.approx(0, abs=1e-4)
    decoded = network.tasks["pose"].decode(raw, network.head)["keypoints"]
    near = (decoded[0] - TARGETS.keypoints[0] * torch.tensor([1.0, 1.0, 0.0]) - torch.tensor([0.0, 0.0, 1.0])).abs().flatten(1).amax(dim=1)
    learned = sum(int((found.images == 0).sum()) for found in matches)
    assert (near < 1e-3).sum() == learned, "the head decodes what the loss asks for"
    for level, found in zip(raw, matches, strict=True):
        second = found.images == 1
        level[found.images[second], found.anchors[second], found.rows[second], found.columns[second]] = 7.0
    assert pose_loss(raw, TARGETS, matches, network).item() == pytest.approx(0, abs=1e-4)


def test_a_keypoint_that_the_data_set_does_not_know_is_neither_seen_nor_hidden(network):
    matches, raw = matches_of(TARGETS), perfect_pose(network)
    unknown = TARGETS.keypoints.clone()
    unknown[0, 1] = torch.tensor([0.0, 0.0, -1.0])
    hidden = unknown.clone()
    hidden[0, 1, 2] = 0
    assert pose_loss(raw, replace(TARGETS, keypoints=unknown), matches, network).item() == pytest.approx(0, abs=1e-4)
    assert pose_loss(raw, replace(TARGETS, keypoints=hidden), matches, network).item() > 1


def painted(targets):
    """Return coefficients and prototypes whose product is a mask as annotated: one prototype per object."""
    prototypes = torch.zeros(2, 32, 16, 16)
    coefficients = levels(32)
    for number in range(2):
        inside = targets.instances[targets.images[number], ::4, ::4] == number + 1
        prototypes[targets.images[number], number] = torch.where(inside, 20.0, -20.0)
    for level, found in zip(coefficients, matches_of(targets), strict=True):
        level[found.images, found.anchors, found.rows, found.columns, found.objects] = 1.0
    return [*coefficients, prototypes]


def test_masks_as_annotated_cost_little_and_inverted_ones_much(network):
    matches = matches_of(TARGETS)
    right, wrong = painted(TARGETS), painted(TARGETS)
    wrong[-1] *= -1
    # Prototypes are read between cells, so edges are never quite sharp.
    assert segment_loss(right, TARGETS, matches, network).item() < 0.2
    assert segment_loss(wrong, TARGETS, matches, network).item() > 5


def test_an_object_without_a_mask_teaches_none(network):
    matches, wrong = matches_of(TARGETS), painted(TARGETS)
    wrong[-1][1] *= -1
    only_first = replace(TARGETS, has_mask=torch.tensor([True, False]))
    assert segment_loss(wrong, only_first, matches, network).item() < 0.2
    nobody = replace(TARGETS, has_mask=torch.tensor([False, False]))
    assert segment_loss(wrong, nobody, matches, network).item() == 0


@pytest.mark.parametrize("targets", [TARGETS, NOTHING], ids=["annotated", "nothing annotated"])
def test_every_parameter_gets_a_finite_gradient_whatever_is_annotated(network, targets):
    parts = loss_parts(network(torch.rand(2, 3, SIDE, SIDE)), targets, network, LossConfig())
    assert list(parts) == ["box", "objectness", "cls", "classify", "embed", "segment", "pose"]
    sum(parts.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if targets is NOTHING:
        assert all(parts[task].item() == 0 for task in LOSSES)


@pytest.mark.parametrize("task", LOSSES)
def test_each_task_has_its_own_gain(network, task):
    raw = network(torch.rand(2, 3, SIDE, SIDE))
    once, twice = (loss_parts(raw, TARGETS, network, replace(LossConfig(), **{task: gain})) for gain in (0.2, 0.4))
    for name in once:
        assert twice[name].item() == pytest.approx(once[name].item() * (2 if name == task else 1), rel=1e-5)


def test_images_whose_objects_are_not_all_annotated_teach_no_background(network):
    raw = network(torch.rand(2, 3, SIDE, SIDE))
    for known, expected in (([True, True], None), ([True, False], 0), ([False, False], -1)):
        targets = replace(NOTHING, boxes_known=torch.tensor(known))
        found = loss_parts(raw, targets, network, LossConfig())["objectness"]
        [gradient] = torch.autograd.grad(found, [raw["detect"][0]], retain_graph=True)
        learned = gradient[..., 4].flatten(1).abs().amax(dim=1) > 0
        assert learned.tolist() == known, expected


def test_targets_grow_with_the_image():
    larger = TARGETS.scaled(2.0, 2 * SIDE)
    assert torch.equal(larger.boxes_cxcywh, TARGETS.boxes_cxcywh * 2)
    assert torch.equal(larger.keypoints[..., :2], TARGETS.keypoints[..., :2] * 2)
    assert torch.equal(larger.keypoints[..., 2], TARGETS.keypoints[..., 2])
    assert torch.equal(larger.instances, TARGETS.instances.repeat_interleave(2, 1).repeat_interleave(2, 2))

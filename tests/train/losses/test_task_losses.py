"""The losses of the tasks beside detection for handmade predictions."""

import math
from dataclasses import replace

import pytest
import torch

from matched_cells import matched_cells
from yolor_ray.config import LossConfig, NetworkConfig
from yolor_ray.config.network import TASKS
from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Targets, match_boxes
from yolor_ray.train.losses.classify import classify_loss
from yolor_ray.train.losses.embed import COSINE_SCALE, MARGIN, embed_loss
from yolor_ray.train.losses.grid import grid_of
from yolor_ray.train.losses.pose import pose_loss
from yolor_ray.train.losses.segment import segment_loss
from yolor_ray.train.losses.total import LOSSES, loss_terms

CONFIG = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 8, 8), depths=(1, 1, 1), levels=2, neck_depth=1, tasks=TASKS)
ANCHORS = torch.tensor([[[8.0, 10.0], [16.0, 12.0], [12.0, 24.0]], [[30.0, 30.0], [60.0, 32.0], [40.0, 80.0]]])
SIDE = 64
UNLABELLED = [[0.0, 0.0, 0.0]] * 2


def instance_map() -> torch.Tensor:
    """Return an instance map in image size: the left half of the first object and all of the second."""
    instances = torch.zeros(2, 64, 64, dtype=torch.int32)
    instances[0, 16:32, 8:16] = 1
    instances[1, 24:48, 24:48] = 2
    return instances


TARGETS = Targets(
    images=torch.tensor([0, 1]),
    labels=torch.tensor([0, 1]),
    boxes_cxcywh=torch.tensor([[16.0, 24.0, 16.0, 16.0], [36.0, 36.0, 24.0, 24.0]]),
    keypoints=torch.tensor([[[10.0, 18.0, 2.0], [20.0, 30.0, 1.0]], UNLABELLED]),
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
    return Yolor(CONFIG, 2, ANCHORS, image_classes=3, keypoints=2, identities=(4,))


def matches_of(targets):
    return match_boxes(targets, ANCHORS, grid_of(raw_levels(1), (8, 16)), anchor_ratio=4.0)


def raw_levels(numbers, fill=0.0):
    return [torch.full((2, 3, SIDE // stride, SIDE // stride, numbers), fill) for stride in (8, 16)]


def test_unknown_image_labels_are_ignored(network):
    logits = torch.tensor([[20.0, -20.0, 5.0], [9.0, 9.0, 9.0]], requires_grad=True)
    matches = matches_of(TARGETS)
    loss = classify_loss([logits], TARGETS, matches, network)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert (logits.grad[1] == 0).all() and logits.grad[0, 2] == 0
    wrong = torch.tensor([[0.0, 0.0, 5.0], [9.0, 9.0, 9.0]])
    assert classify_loss([wrong], TARGETS, matches, network).item() == pytest.approx(math.log(2))


def test_an_embedding_is_pulled_to_its_own_proxy_alone(network):
    matches = matches_of(TARGETS)
    towards = [torch.zeros_like(level) for level in raw_levels(64)]
    for level in towards:
        level[:] = network.tasks["embed"].proxies[2].detach()
    near = embed_loss(towards, TARGETS, matches, network)
    for level in towards:
        level[:] = network.tasks["embed"].proxies[1].detach()
    assert near.item() < 0.1 < embed_loss(towards, TARGETS, matches, network).item()
    unknown = replace(TARGETS, identities=torch.tensor([-1, -1]))
    assert embed_loss(towards, unknown, matches, network).item() == 0


def test_an_embedding_as_close_to_another_proxy_as_to_its_own_lacks_the_margin(network):
    proxies = network.tasks["embed"].proxies
    torch.nn.init.orthogonal_(proxies)
    raw = [(proxies[2] + proxies[1]).detach().expand_as(level) for level in raw_levels(64)]
    own = math.sqrt(0.5) - MARGIN
    expected = math.log1p(math.exp(COSINE_SCALE * MARGIN) + (len(proxies) - 2) * math.exp(-COSINE_SCALE * own))
    assert embed_loss(raw, TARGETS, matches_of(TARGETS), network).item() == pytest.approx(expected, rel=1e-5)


def test_in_a_union_an_embedding_learns_among_the_identities_of_its_dataset_alone():
    torch.manual_seed(0)
    alone, union = (Yolor(CONFIG, 2, ANCHORS, image_classes=3, keypoints=2, identities=counts) for counts in ((4,), (3, 4, 2)))
    proxies = union.tasks["embed"].proxies
    proxies.data[3:7] = alone.tasks["embed"].proxies.data
    raw = [torch.randn_like(level) for level in raw_levels(64)]
    of_member = replace(TARGETS, identities=torch.tensor([5, -1]), members=torch.tensor([1, 1]))
    loss = embed_loss(raw, of_member, matches_of(of_member), union)
    assert loss.item() == pytest.approx(embed_loss(raw, TARGETS, matches_of(TARGETS), alone).item(), rel=1e-6)
    loss.backward()
    is_learned = proxies.grad.abs().sum(dim=1) > 0
    assert is_learned.tolist() == [False] * 3 + [True] * 4 + [False] * 2
    nobody = replace(of_member, identities=torch.tensor([-1, -1]), members=torch.tensor([2, 2]))
    proxies.grad = None
    embed_loss(raw, nobody, matches_of(nobody), union).backward()
    assert not proxies.grad.any()


def perfect_pose(network):
    """Return the raw outputs of the head that decode to the annotated keypoints."""
    raw = raw_levels(6)
    for level, matches, anchors, stride in zip(raw, matched_cells(matches_of(TARGETS)), ANCHORS, (8, 16), strict=True):
        cells = torch.stack((matches.columns, matches.rows), dim=-1)
        middle = (cells + 0.5) * stride
        points = TARGETS.keypoints[matches.objects]
        offsets = (points[..., :2] - middle[:, None]) / anchors[matches.anchors][:, None]
        outputs = torch.cat((offsets, torch.full_like(points[..., 2:], 20.0)), dim=-1)
        level[matches.images, matches.anchors, matches.rows, matches.columns] = outputs.flatten(1)
    return raw


def test_correct_keypoints_and_unlabelled_objects_have_no_loss(network):
    matches, raw = matches_of(TARGETS), perfect_pose(network)
    assert pose_loss(raw, TARGETS, matches, network).item() == pytest.approx(0, abs=1e-4)
    decoded = network.tasks["pose"].decode(raw, network.head)["keypoints"]
    near = (decoded[0] - TARGETS.keypoints[0] * torch.tensor([1.0, 1.0, 0.0]) - torch.tensor([0.0, 0.0, 1.0])).abs().flatten(1).amax(dim=1)
    learned = (matches.valid & (matches.images == 0)).sum()
    assert (near < 1e-3).sum() == learned, "the head decodes the outputs that the loss expects"
    for level, m in zip(raw, matched_cells(matches), strict=True):
        second = m.images == 1
        level[m.images[second], m.anchors[second], m.rows[second], m.columns[second]] = 7.0
    assert pose_loss(raw, TARGETS, matches, network).item() == pytest.approx(0, abs=1e-4)


def test_an_unknown_keypoint_counts_neither_as_visible_nor_as_hidden(network):
    matches, raw = matches_of(TARGETS), perfect_pose(network)
    unknown = TARGETS.keypoints.clone()
    unknown[0, 1] = torch.tensor([0.0, 0.0, -1.0])
    hidden = unknown.clone()
    hidden[0, 1, 2] = 0
    assert pose_loss(raw, replace(TARGETS, keypoints=unknown), matches, network).item() == pytest.approx(0, abs=1e-4)
    assert pose_loss(raw, replace(TARGETS, keypoints=hidden), matches, network).item() > 1


def perfect_masks(targets):
    """Return coefficients and prototypes whose products are the annotated masks: one prototype per object."""
    prototypes = torch.zeros(2, 32, 16, 16)
    coefficients = raw_levels(32)
    for index in range(2):
        inside = targets.instances[targets.images[index], ::4, ::4] == index + 1
        prototypes[targets.images[index], index] = torch.where(inside, 20.0, -20.0)
    for level, m in zip(coefficients, matched_cells(matches_of(targets)), strict=True):
        level[m.images, m.anchors, m.rows, m.columns, m.objects] = 1.0
    return [*coefficients, prototypes]


def test_correct_masks_have_a_low_loss_and_inverted_masks_a_high_one(network):
    matches = matches_of(TARGETS)
    right, wrong = perfect_masks(TARGETS), perfect_masks(TARGETS)
    wrong[-1] *= -1
    # Prototypes are interpolated between cells, so the edges of masks are never exact.
    assert segment_loss(right, TARGETS, matches, network).item() < 0.2
    assert segment_loss(wrong, TARGETS, matches, network).item() > 5


def test_an_object_without_a_mask_has_no_mask_loss(network):
    matches, wrong = matches_of(TARGETS), perfect_masks(TARGETS)
    wrong[-1][1] *= -1
    only_first = replace(TARGETS, has_mask=torch.tensor([True, False]))
    assert segment_loss(wrong, only_first, matches, network).item() < 0.2
    no_masks = replace(TARGETS, has_mask=torch.tensor([False, False]))
    assert segment_loss(wrong, no_masks, matches, network).item() == 0


@pytest.mark.parametrize("targets", [TARGETS, NOTHING], ids=["annotated", "nothing annotated"])
def test_every_parameter_gets_a_finite_gradient_with_and_without_annotations(network, targets):
    terms = loss_terms(network(torch.rand(2, 3, SIDE, SIDE)), targets, network, LossConfig())
    assert list(terms) == ["box", "objectness", "cls", "classify", "embed", "segment", "pose"]
    sum(terms.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if targets is NOTHING:
        assert all(terms[task].item() == 0 for task in LOSSES)


def test_images_without_complete_boxes_have_no_objectness_loss(network):
    raw = network(torch.rand(2, 3, SIDE, SIDE))
    for boxes_known in ([True, True], [True, False], [False, False]):
        targets = replace(NOTHING, boxes_known=torch.tensor(boxes_known))
        objectness = loss_terms(raw, targets, network, LossConfig())["objectness"]
        [gradient] = torch.autograd.grad(objectness, [raw["detect"][0]], retain_graph=True)
        learned = gradient[..., 4].flatten(1).abs().amax(dim=1) > 0
        assert learned.tolist() == boxes_known


def test_targets_are_resized_with_the_image():
    larger = TARGETS.resize(2.0, 2 * SIDE)
    assert torch.equal(larger.boxes_cxcywh, TARGETS.boxes_cxcywh * 2)
    assert torch.equal(larger.keypoints[..., :2], TARGETS.keypoints[..., :2] * 2)
    assert torch.equal(larger.keypoints[..., 2], TARGETS.keypoints[..., 2])
    assert torch.equal(larger.instances, TARGETS.instances.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.parametrize("head", ["anchors", "free"])
def test_the_datasets_of_a_union_count_by_their_images_and_not_by_their_objects(head):
    torch.manual_seed(0)
    config = replace(CONFIG, head=head)
    network = Yolor(config, 2, ANCHORS if head == "anchors" else None, image_classes=3, keypoints=2, identities=(2, 2))
    raw = network(torch.rand(3, 3, SIDE, SIDE))
    images = torch.tensor([0, 1, 1, 1, 1, 2])
    targets = Targets(
        images=images,
        labels=torch.tensor([0, 1, 0, 1, 0, 1]),
        boxes_cxcywh=torch.tensor([[12.0 + 8 * k, 20.0 + 4 * k, 12.0 + 2 * k, 16.0] for k in range(6)]),
        members=torch.tensor([0, 1, 0]),
        keypoints=torch.rand(6, 2, 3) * 40 + torch.tensor([0.0, 0.0, 2.0]),
        identities=torch.tensor([1, 2, 3, 2, -1, 0]),
        has_mask=torch.zeros(6, dtype=torch.bool),
        instances=torch.zeros(3, 64, 64, dtype=torch.int32),
        image_labels=torch.tensor([[1.0, 0.0, math.nan], [0.0, 1.0, 1.0], [math.nan] * 3]),
    )

    def terms_of(chosen: list[int]) -> dict[str, torch.Tensor]:
        part = targets.of_images(torch.tensor(chosen))
        outputs = {task: [level[chosen] for level in levels] for task, levels in raw.items()}
        of_union = loss_terms(outputs, part, network, LossConfig())
        # The identities of other datasets are known by the members alone.
        return loss_terms(outputs, replace(part, members=None), network, LossConfig()) | {"embed": of_union["embed"]}

    first, second, both = terms_of([0, 2]), terms_of([1]), loss_terms(raw, targets, network, LossConfig())
    assert list(both) == list(first)
    for name, term in both.items():
        torch.testing.assert_close(term, (2 * first[name] + second[name]) / 3)
    pooled = loss_terms(raw, replace(targets, members=None), network, LossConfig())
    assert not torch.isclose(pooled["pose"], both["pose"], rtol=1e-3)

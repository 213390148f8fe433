"""The head without anchors: shapes, decoding, priors, implicit knowledge in every form, fusing and transfer."""

import math
from dataclasses import replace

import pytest
import torch

from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.config.variants import VARIANTS
from yolor_ray.errors import ConfigError
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.heads.free import FreeHead
from yolor_ray.model.implicit import IMPLICIT_MODULES
from yolor_ray.model.network import Yolor
from yolor_ray.model.transfer import load_trainable, transfer_weights
from yolor_ray.model.weights import WeightsInfo, load_weights, save_weights

FREE = NetworkConfig(
    stem="reorg", stem_width=8, widths=(16, 24, 32), depths=(1, 1, 1), levels=2, neck_depth=1, head="free", implicit=ImplicitConfig(std=0.3)
)
BINS = replace(FREE, distance_bins=16)
HEADS = pytest.mark.parametrize("free", [FREE, BINS], ids=["distances", "distributions"])
TASKS = replace(FREE, tasks=("detect", "classify", "embed", "segment", "pose"))
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
FORMS = {name: variant.implicit for name, variant in VARIANTS.items() if not variant.implicit.needs_anchors}


def names(classes: tuple[str, ...]) -> WeightsInfo:
    return WeightsInfo("", classes, 64)


def make_network(config: NetworkConfig = FREE, classes: int = 3) -> Yolor:
    torch.manual_seed(0)
    network = Yolor(config, classes, image_classes=2, keypoints=3, identities=(5,))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network.double().eval()


@pytest.mark.parametrize(("free", "numbers"), [(FREE, 4 + 3), (BINS, 4 * 16 + 3)], ids=["distances", "distributions"])
def test_a_cell_predicts_four_distances_and_the_classes(free, numbers):
    raw = make_network(free)(IMAGES.double())["detect"]
    assert [tuple(level.shape) for level in raw] == [(2, 1, 8, 12, numbers), (2, 1, 4, 6, numbers)]
    outputs = make_network(free).decode(make_network(free)(IMAGES.double()))
    assert outputs["boxes_xyxy"].shape == (2, 8 * 12 + 4 * 6, 4)
    assert outputs["scores"].shape == (2, 120, 3)


def test_distances_are_decoded_from_the_centre_of_the_cell():
    head = make_network().head
    raw = [torch.zeros(1, 1, 8, 8, 7), torch.zeros(1, 1, 4, 4, 7)]
    # softplus(y) = 2 cells to the left and 3 to the bottom of the cell in row 1, column 2 of the coarse level, stride 16.
    raw[1][0, 0, 1, 2, :4] = torch.expm1(torch.tensor([2.0, 1.0, 0.5, 3.0])).log()
    boxes_cxcywh, scores = head.decode(raw)
    x, y, w, h = boxes_cxcywh[0, 64 + 1 * 4 + 2].tolist()
    assert (x - w / 2, y - h / 2, x + w / 2, y + h / 2) == pytest.approx((40 - 32, 24 - 16, 40 + 8, 24 + 48), abs=1e-3)
    assert scores.unique().tolist() == [0.5]


def test_a_distance_is_the_mean_of_its_distribution_in_cells():
    head = make_network(BINS).head
    shares = torch.zeros(4, 16)
    # Left half 1 and half 3 cells, top 15 cells, right 0 cells, bottom a quarter of 4 and three quarters of 5 cells.
    shares[0, 1], shares[0, 3], shares[1, 15], shares[2, 0], shares[3, 4], shares[3, 5] = 0.5, 0.5, 1.0, 1.0, 0.25, 0.75
    raw = [torch.zeros(1, 1, n, n, 4 * 16 + 3) for n in (8, 4)]
    raw[1][0, 0, 1, 2, :64] = (shares + 1e-9).log().flatten()
    x, y, w, h = head.decode(raw)[0][0, 64 + 1 * 4 + 2].tolist()
    assert (x - w / 2, y - h / 2, x + w / 2, y + h / 2) == pytest.approx((40 - 32, 24 - 240, 40, 24 + 76), abs=1e-3)


@pytest.mark.parametrize(("free", "tolerance"), [(FREE, 1e-5), (BINS, 0.02)], ids=["distances", "distributions"])
def test_a_fresh_network_expects_rare_objects_of_the_reference_size(free, tolerance):
    torch.manual_seed(0)
    network = Yolor(replace(free, implicit=ImplicitConfig(align="none", refine="none")), 3)
    with torch.no_grad():
        for level in (*network.head.boxes, *network.head.scores):
            level.predict.weight.zero_()
    outputs = network.decode(network(IMAGES))
    sides = outputs["boxes_xyxy"][0, :, 2:] - outputs["boxes_xyxy"][0, :, :2]
    torch.testing.assert_close(sides[:96], torch.full((96, 2), 32.0), rtol=tolerance, atol=0)
    torch.testing.assert_close(sides[96:], torch.full((24, 2), 64.0), rtol=tolerance, atol=0)
    assert outputs["scores"].max() < 0.01


@HEADS
@pytest.mark.parametrize("implicit", FORMS.values(), ids=FORMS)
def test_every_form_of_implicit_knowledge_folds_exactly(implicit, free):
    config = replace(free, tasks=TASKS.tasks, implicit=implicit)
    network = make_network(config)
    fused = fuse(network)
    assert is_fused(fused) and not any(isinstance(module, IMPLICIT_MODULES) for module in fused.modules())
    outputs, expected = fused.decode(fused(IMAGES.double())), network.decode(network(IMAGES.double()))
    for name, tensor in expected.items():
        torch.testing.assert_close(outputs[name], tensor, rtol=1e-5, atol=1e-4)


def test_every_branch_of_every_level_has_its_own_priors():
    names = {name for name, _ in make_network().named_parameters() if name.startswith("head.") and name.endswith(".z")}
    assert names == {
        f"head.{branch}.{level}.{role}.z" for branch in ("boxes", "scores") for level in (0, 1) for role in ("align", "refine")
    }


def test_refinement_of_sizes_refines_the_distances_alone():
    network = make_network(replace(FREE, implicit=ImplicitConfig(align="none", refine_what="size")))
    names = {name for name, _ in network.named_parameters() if name.endswith(".z")}
    assert names == {"head.boxes.0.refine.z", "head.boxes.1.refine.z"}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"align_per": "anchor"}, r"align_per: found 'anchor', expected level, as network\.head free has no anchors"),
        ({"refine_what": "centre"}, r"refine_what: found 'centre', expected all or size, as network\.head free predicts the distances"),
        ({"refine": "add_multiply"}, r"refine: found 'add_multiply', expected none, add or multiply, as network\.head free predicts"),
    ],
)
def test_forms_that_need_anchors_are_refused_without_anchors(form, message):
    assert ImplicitConfig(**form).needs_anchors
    with pytest.raises(ConfigError, match=rf"network\.implicit\.{message}"):
        replace(FREE, implicit=ImplicitConfig(**form))


@HEADS
def test_weights_are_saved_and_loaded(tmp_path, free):
    config = replace(free, tasks=TASKS.tasks)
    network = make_network(config).float()
    save_weights(
        str(tmp_path / "w"), network, WeightsInfo("free", ("a", "b", "c"), 64, image_classes=("x", "y"), keypoint_names=("k", "l", "m"))
    )
    loaded, _ = load_weights(str(tmp_path / "w"))
    assert loaded.config == config
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_classes_are_transferred_by_name():
    source, network = make_network(), Yolor(FREE, 2)
    fresh = network.head.scores[0].predict.weight.detach().clone()
    report = transfer_weights(network, names(("c", "new")), source.float(), names(("a", "b", "c")))
    scores, expected = network.head.scores[0].predict.weight, source.head.scores[0].predict.weight
    assert torch.equal(scores[0], expected[2])
    assert torch.equal(scores[1], fresh[1])
    assert torch.equal(network.head.boxes[1].predict.weight, source.head.boxes[1].predict.weight)
    assert {name for name in report.partial if name.endswith("weight")} == {f"head.scores.{level}.predict.weight" for level in (0, 1)}
    assert report.shared_classes == ("c",)


@pytest.mark.parametrize(("found", "wanted"), [(FREE, BINS), (BINS, FREE)], ids=["to_distributions", "to_distances"])
def test_weights_with_other_bins_give_everything_but_the_distances(tmp_path, found, wanted):
    source, network = make_network(found).float(), Yolor(wanted, 3)
    save_weights(str(tmp_path / "w"), source, WeightsInfo("other", ("a", "b", "c"), 64))
    loaded, info = load_trainable(str(tmp_path / "w"), wanted)
    report = transfer_weights(network, names(("a", "b", "c")), loaded, info)
    own = {f"head.boxes.{level}.{name}" for level in (0, 1) for name in ("predict.weight", "predict.bias", "refine.z")}
    assert set(report.fresh) == own
    assert report.partial == ()


@pytest.mark.parametrize(("found", "wanted"), [("free", "anchors"), ("anchors", "free")])
def test_weights_of_the_other_head_give_the_backbone_and_the_neck(tmp_path, found, wanted):
    anchors = torch.ones(2, 3, 2)
    source = Yolor(replace(FREE, head=found), 3, anchors)
    save_weights(str(tmp_path / "w"), source, WeightsInfo("other", ("a", "b", "c"), 64))
    network = Yolor(replace(FREE, head=wanted), 3, 2 * anchors)
    loaded, info = load_trainable(str(tmp_path / "w"), network.config)
    report = transfer_weights(network, names(("a", "b", "c")), loaded, info)
    explicit = {name for name in network.state_dict() if name.startswith(("backbone.", "neck."))}
    assert report.copied == len(explicit)
    assert {name.partition(".")[0] for name in report.fresh} == {"head"}
    if wanted == "anchors":
        assert torch.equal(network.head.anchors, 2 * anchors)


def test_the_first_biases_of_distances_are_exactly_those_of_a_geometric_distribution():
    expected = (torch.arange(BINS.distance_bins) * math.log(2 / 3)).repeat(4)
    for level in FreeHead(BINS, 3).boxes:
        assert torch.equal(level.predict.bias, expected)

"""Training starts from all that fits of other weights, output by output, and says what starts fresh."""

from dataclasses import replace

import pytest
import torch

from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.errors import WeightsError
from yolor_ray.model.fuse import fuse
from yolor_ray.model.transfer import load_trainable, transfer_weights
from yolor_ray.model.weights import WeightsInfo, save_weights

ANIMALS = ("cat", "dog", "bird")


@pytest.fixture
def source(make_network):
    return make_network(classes=3, seed=1)


def named(classes):
    return WeightsInfo("", classes, 64)


def by_output(network, level=0):
    """Return what each output of each anchor is made by: its row of the prediction convolution, its bias and its gain."""
    head = network.head.levels[level]
    outputs = 5 + network.classes
    rows = torch.cat((head.predict.weight[:, :, 0, 0], head.predict.bias[:, None], head.refine.z[:, None]), dim=1)
    return rows.detach().view(3, outputs, -1)


def test_the_same_classes_take_everything_over_but_the_anchors(make_network, source):
    network = make_network(seed=2)
    network.head.anchors.mul_(2)
    anchors = network.head.anchors.clone()
    taken = transfer_weights(network, named(ANIMALS), source, named(ANIMALS))
    assert (taken.partial, taken.fresh, taken.known_classes) == ((), (), ANIMALS)
    assert taken.tensors == len(network.state_dict()) - 1
    assert torch.equal(network.head.anchors, anchors)
    network.head.anchors.copy_(source.head.anchors)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(network(image)["detect"], source(image)["detect"], strict=True))


def test_other_classes_keep_boxes_objectness_and_the_classes_of_the_same_name(make_network, source):
    network = make_network(classes=4, seed=2)
    fresh, theirs = by_output(network).clone(), by_output(source)
    taken = transfer_weights(network, named(("horse", "bird", "cow", "cat")), source, named(ANIMALS))
    mine = by_output(network)
    assert torch.equal(mine[:, :5], theirs[:, :5])
    assert torch.equal(mine[:, 6], theirs[:, 7])
    assert torch.equal(mine[:, 8], theirs[:, 5])
    assert torch.equal(mine[:, [5, 7]], fresh[:, [5, 7]])
    assert taken.known_classes == ("bird", "cat")
    expected = {f"head.levels.{level}.{part}" for level in (0, 1) for part in ("predict.weight", "predict.bias", "refine.z")}
    assert set(taken.partial) == expected
    assert taken.fresh == ()


def test_classes_in_another_order_are_matched_by_name(make_network, source):
    network = make_network(seed=2)
    taken = transfer_weights(network, named(("bird", "cat", "dog")), source, named(ANIMALS))
    assert torch.equal(by_output(network)[:, 5:], by_output(source)[:, [7, 5, 6]])
    assert taken.partial == ()


def test_as_many_classes_of_other_names_are_not_taken_for_the_same(make_network, source):
    network = make_network(seed=2)
    fresh = by_output(network)[:, 5:].clone()
    taken = transfer_weights(network, named(("car", "bus", "van")), source, named(ANIMALS))
    assert taken.known_classes == ()
    assert torch.equal(by_output(network)[:, 5:], fresh)


def test_another_form_of_implicit_knowledge_starts_fresh_beside_the_explicit_weights(make_network, source):
    network = make_network(seed=2, implicit=ImplicitConfig(align="concat", refine="multiply", refine_by="network"))
    features = [level.predict.in_channels for level in source.head.levels]
    taken = transfer_weights(network, named(ANIMALS), source, named(ANIMALS))
    assert set(taken.fresh) == {f"head.levels.{level}.{part}" for level in (0, 1) for part in ("align.z", "refine.z", "refine.phi")}
    assert set(taken.partial) == {f"head.levels.{level}.predict.weight" for level in (0, 1)}
    for mine, theirs, width in zip(network.head.levels, source.head.levels, features, strict=True):
        assert torch.equal(mine.predict.weight[:, width:], theirs.predict.weight), "behind the prior it sees the features as before"
    assert torch.equal(network.backbone.stem[1].conv.weight, source.backbone.stem[1].conv.weight)


@pytest.mark.parametrize("form", [{"align": "multiply"}, {"refine": "add"}, {"refine_what": "size"}, {"align_per": "anchor"}])
def test_what_was_learned_under_one_operator_is_not_applied_by_another(make_network, source, form):
    network = make_network(seed=2, implicit=ImplicitConfig(**form))
    place = "align" if "align" in next(iter(form)) else "refine"
    before = [getattr(level, place).z.clone() for level in network.head.levels]
    transfer_weights(network, named(ANIMALS), source, named(ANIMALS))
    assert all(torch.equal(getattr(level, place).z, z) for level, z in zip(network.head.levels, before, strict=True))


@pytest.mark.parametrize(
    ("change", "fault"),
    [({"neck_depth": 2}, "network.neck_depth: found 1, expected 2"), ({"widths": (8, 16, 32)}, r"network.widths: found \(8, 16, 24\)")],
)
def test_weights_of_another_network_are_refused_with_the_difference(source, tmp_path, change, fault):
    save_weights(str(tmp_path), source, WeightsInfo("animals", ANIMALS, 64))
    with pytest.raises(WeightsError, match=fault):
        load_trainable(str(tmp_path), replace(source.config, **change))
    assert load_trainable(str(tmp_path), replace(source.config, implicit=ImplicitConfig(align="none")))[1].classes == ANIMALS


def test_fused_weights_are_refused(source, tmp_path):
    save_weights(str(tmp_path), fuse(source), WeightsInfo("animals", ANIMALS, 64))
    with pytest.raises(WeightsError, match="found fused weights, which cannot be trained"):
        load_trainable(str(tmp_path), NetworkConfig())

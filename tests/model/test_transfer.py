"""Transfer of weights into another network, output by output, with a report of fresh tensors."""

from dataclasses import replace

import pytest
import torch

from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.errors import WeightsError
from yolor_ray.model.fuse import fuse
from yolor_ray.model.implicit import principal_directions, project_weight, unproject_weight
from yolor_ray.model.transfer import load_trainable, transfer_weights
from yolor_ray.model.weights import WeightsInfo, save_weights

ANIMALS = ("cat", "dog", "bird")


@pytest.fixture
def source(make_network):
    return make_network(classes=3, seed=1)


def class_names(classes):
    return WeightsInfo("", classes, 64)


def weights_by_output(network, level=0):
    """Return the weights of each output of each anchor: its row of the prediction convolution, its bias and its gain."""
    head = network.head.levels[level]
    outputs = 5 + network.classes
    rows = torch.cat((head.predict.weight[:, :, 0, 0], head.predict.bias[:, None], head.refine.z[:, None]), dim=1)
    return rows.detach().view(3, outputs, -1)


def test_equal_classes_transfer_all_weights_but_the_anchors(make_network, source):
    network = make_network(seed=2)
    network.head.anchors.mul_(2)
    anchors = network.head.anchors.clone()
    report = transfer_weights(network, class_names(ANIMALS), source, class_names(ANIMALS))
    assert (report.partial, report.fresh, report.shared_classes) == ((), (), ANIMALS)
    assert report.copied == len(network.state_dict()) - 1
    assert torch.equal(network.head.anchors, anchors)
    network.head.anchors.copy_(source.head.anchors)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(network(image)["detect"], source(image)["detect"], strict=True))


def test_other_classes_transfer_boxes_objectness_and_classes_of_the_same_name(make_network, source):
    network = make_network(classes=4, seed=2)
    fresh, expected = weights_by_output(network).clone(), weights_by_output(source)
    report = transfer_weights(network, class_names(("horse", "bird", "cow", "cat")), source, class_names(ANIMALS))
    transferred = weights_by_output(network)
    assert torch.equal(transferred[:, :5], expected[:, :5])
    assert torch.equal(transferred[:, 6], expected[:, 7])
    assert torch.equal(transferred[:, 8], expected[:, 5])
    assert torch.equal(transferred[:, [5, 7]], fresh[:, [5, 7]])
    assert report.shared_classes == ("bird", "cat")
    outputs = {f"head.levels.{level}.{tensor}" for level in (0, 1) for tensor in ("predict.weight", "predict.bias", "refine.z")}
    assert set(report.partial) == outputs
    assert report.fresh == ()


def test_classes_in_another_order_are_matched_by_name(make_network, source):
    network = make_network(seed=2)
    report = transfer_weights(network, class_names(("bird", "cat", "dog")), source, class_names(ANIMALS))
    assert torch.equal(weights_by_output(network)[:, 5:], weights_by_output(source)[:, [7, 5, 6]])
    assert report.partial == ()


def test_equally_many_classes_of_other_names_are_not_transferred(make_network, source):
    network = make_network(seed=2)
    fresh = weights_by_output(network)[:, 5:].clone()
    report = transfer_weights(network, class_names(("car", "bus", "van")), source, class_names(ANIMALS))
    assert report.shared_classes == ()
    assert torch.equal(weights_by_output(network)[:, 5:], fresh)


def test_another_form_of_implicit_knowledge_starts_fresh_beside_the_explicit_weights(make_network, source):
    network = make_network(seed=2, implicit=ImplicitConfig(align="concat", refine="multiply", refine_by="network"))
    features = [level.predict.in_channels for level in source.head.levels]
    report = transfer_weights(network, class_names(ANIMALS), source, class_names(ANIMALS))
    assert set(report.fresh) == {f"head.levels.{level}.{tensor}" for level in (0, 1) for tensor in ("align.z", "refine.z", "refine.phi")}
    assert set(report.partial) == {f"head.levels.{level}.predict.weight" for level in (0, 1)}
    for level, source_level, width in zip(network.head.levels, source.head.levels, features, strict=True):
        assert torch.equal(level.predict.weight[:, width:], source_level.predict.weight), "the features come after the prior"
    assert torch.equal(network.backbone.stem[1].conv.weight, source.backbone.stem[1].conv.weight)


@pytest.mark.parametrize("place", ["prediction", "pyramid"])
def test_a_projection_takes_over_the_principal_directions_of_other_weights(make_network, place):
    plain, projected = ImplicitConfig(align="none"), ImplicitConfig(align="project", align_at=place)
    source, network = make_network(seed=1, implicit=plain), make_network(seed=2, implicit=projected)
    report = transfer_weights(network, class_names(ANIMALS), source, class_names(ANIMALS))
    assert (report.partial, report.fresh) == ((), ())
    for level, source_level in zip(network.head.levels, source.head.levels, strict=True):
        z, weight, expected = (
            (level.align.z, level.predict.weight, source_level.predict.weight)
            if place == "prediction"
            else (level.pyramid.z, level.conv.conv.weight, source_level.conv.conv.weight)
        )
        best = principal_directions(expected, len(z))
        torch.testing.assert_close(unproject_weight(weight, z), unproject_weight(project_weight(expected, best), best))


def test_weights_behind_a_projection_are_multiplied_out_for_a_network_without_it(make_network):
    source, network = (
        make_network(seed=1, implicit=ImplicitConfig(align="project")),
        make_network(seed=2, implicit=ImplicitConfig(align="none")),
    )
    report = transfer_weights(network, class_names(ANIMALS), source, class_names(ANIMALS))
    assert (report.partial, report.fresh) == ((), ())
    image = torch.rand(1, 3, 64, 64)
    network.head.anchors.copy_(source.head.anchors)
    with torch.inference_mode():
        for output, expected in zip(network(image)["detect"], source(image)["detect"], strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_a_projection_with_other_classes_keeps_the_fresh_rows(make_network):
    source, network = (
        make_network(seed=1, implicit=ImplicitConfig(align="none")),
        make_network(seed=2, implicit=ImplicitConfig(align="project")),
    )
    report = transfer_weights(network, class_names(("cat", "horse", "cow")), source, class_names(ANIMALS))
    outputs = {f"head.levels.{level}.{tensor}" for level in (0, 1) for tensor in ("predict.weight", "predict.bias", "refine.z", "align.z")}
    assert set(report.partial) == outputs


@pytest.mark.parametrize("form", [{"align": "multiply"}, {"refine": "add"}, {"refine_what": "size"}, {"align_per": "anchor"}])
def test_a_prior_of_one_form_is_not_transferred_to_another_form(make_network, source, form):
    network = make_network(seed=2, implicit=ImplicitConfig(**form))
    module = "align" if "align" in next(iter(form)) else "refine"
    before = [getattr(level, module).z.clone() for level in network.head.levels]
    transfer_weights(network, class_names(ANIMALS), source, class_names(ANIMALS))
    assert all(torch.equal(getattr(level, module).z, z) for level, z in zip(network.head.levels, before, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"neck_depth": 2}, "network.neck_depth: found 1, expected 2"), ({"widths": (8, 16, 32)}, r"network.widths: found \(8, 16, 24\)")],
)
def test_weights_of_another_network_are_refused_and_the_difference_is_named(source, tmp_path, change, message):
    save_weights(str(tmp_path), source, WeightsInfo("animals", ANIMALS, 64))
    with pytest.raises(WeightsError, match=message):
        load_trainable(str(tmp_path), replace(source.config, **change))
    assert load_trainable(str(tmp_path), replace(source.config, implicit=ImplicitConfig(align="none")))[1].classes == ANIMALS


def test_fused_weights_are_refused(source, tmp_path):
    save_weights(str(tmp_path), fuse(source), WeightsInfo("animals", ANIMALS, 64))
    with pytest.raises(WeightsError, match="found fused weights, which cannot be trained"):
        load_trainable(str(tmp_path), NetworkConfig())

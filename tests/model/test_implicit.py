"""Implicit knowledge in all its forms: neutral at the start, learned, and selected by one setting each."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.errors import ConfigError
from yolor_ray.model.heads.classify import ClassifyHead
from yolor_ray.model.heads.prediction_level import OutputCounts
from yolor_ray.model.implicit import Implicit, Projection, principal_directions, project_weight, unproject_weight
from yolor_ray.model.network import Yolor

PLAIN = ImplicitConfig(align="none", refine="none")
FORMS = [
    *({"align": align, "align_at": at} for align in ("add", "multiply", "concat", "project") for at in ("prediction", "pyramid")),
    *({"align": align, "align_by": model} for align in ("add", "multiply", "concat") for model in ("network", "factors")),
    *({"align": align, "align_per": "anchor"} for align in ("add", "multiply", "concat")),
    *(
        {"refine": refine, "refine_by": model, "refine_what": outputs}
        for refine in ("add", "multiply")
        for model in ("vector", "network", "factors")
        for outputs in ("all", "centre", "size")
    ),
    *({"refine": "add_multiply", "refine_by": model} for model in ("vector", "network", "factors")),
]
NEUTRAL_FORMS = [form for form in FORMS if form.get("align") != "project"]
forms = pytest.mark.parametrize("form", FORMS, ids=["-".join(form.values()) for form in FORMS])
TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 24), depths=(1, 1, 1), levels=2, neck_depth=1)
ANCHORS = torch.tensor([[[8.0, 10.0], [16.0, 12.0], [12.0, 24.0]], [[30.0, 30.0], [60.0, 32.0], [40.0, 80.0]]])


def make_tiny_network(implicit: ImplicitConfig) -> Yolor:
    torch.manual_seed(0)
    return Yolor(replace(TINY, implicit=implicit), 3, ANCHORS)


@pytest.fixture(scope="module")
def plain() -> Yolor:
    """Return a network without implicit knowledge, with batch norm statistics of random images."""
    network = make_tiny_network(PLAIN)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.rand(16, 3, 64, 64))
    return network.eval()


@torch.no_grad()
def with_implicit(plain: Yolor, implicit: ImplicitConfig) -> Yolor:
    """Return a network with implicit knowledge and the plain network's explicit weights."""
    network = make_tiny_network(implicit).eval()
    state = network.state_dict()
    for name, tensor in plain.state_dict().items():
        half = state[name].shape[1] // 2 if state[name].shape != tensor.shape else 0
        (state[name][:, half:] if half else state[name]).copy_(tensor)
    return network


def without_priors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith((".z", ".phi"))}


@forms
def test_implicit_knowledge_does_not_change_the_initial_explicit_weights(form):
    network_of_form = make_tiny_network(replace(PLAIN, **form)).state_dict()
    plain, network = without_priors(make_tiny_network(PLAIN).state_dict()), without_priors(network_of_form)
    assert plain.keys() == network.keys()
    for name, tensor in plain.items():
        if form.get("align") == "project" and network[name].shape != tensor.shape:
            z = network_of_form[name.replace("predict.weight", "align.z").replace("conv.conv.weight", "pyramid.z")]
            assert torch.equal(network[name], project_weight(tensor, z)), name
            continue
        # The convolution after a concatenated prior has the prior's weights first, then those of the plain convolution.
        wider = network[name].shape != tensor.shape
        assert not wider or (form.get("align") == "concat" and name.split(".", 3)[3] in ("predict.weight", "conv.conv.weight"))
        assert torch.equal(tensor, network[name][:, -tensor.shape[1] :] if wider else network[name]), name


@pytest.mark.parametrize("form", NEUTRAL_FORMS, ids=["-".join(form.values()) for form in NEUTRAL_FORMS])
@torch.inference_mode()
def test_fresh_implicit_knowledge_changes_outputs_only_slightly(plain, form):
    network, image = with_implicit(plain, replace(PLAIN, **form)), torch.rand(2, 3, 64, 64)
    for output, expected in zip(network(image)["detect"], plain(image)["detect"], strict=True):
        assert 1e-5 < (output - expected).abs().mean() / expected.std() < 0.05


@pytest.mark.parametrize("operator", ["add", "multiply", "concat"])
@pytest.mark.parametrize("model", ["vector", "network", "factors"])
def test_a_fresh_prior_of_any_model_is_neutral(operator, model):
    """The released layers for equations 7 and 8 start at a gain of 0 ± 0.58 under multiplication."""
    torch.manual_seed(0)
    g = Implicit(operator, 500, model=model, std=0.02).constant().detach()
    neutral = 1.0 if operator == "multiply" else 0.0
    assert g.shape == (500,)
    assert g.mean().item() == pytest.approx(neutral, abs=0.01)
    assert (g - neutral).abs().max() < 0.1
    assert g.std() > 1e-3


def test_a_vector_prior_has_the_mean_and_deviation_of_the_paper():
    torch.manual_seed(0)
    for operator, mean in (("add", 0.0), ("multiply", 1.0)):
        prior = Implicit(operator, 4000, std=0.02)
        assert prior.z.mean().item() == pytest.approx(mean, abs=0.002)
        assert prior.z.std().item() == pytest.approx(0.02, rel=0.1)
        assert torch.equal(prior.constant(), prior.z)


def test_priors_have_the_shapes_of_their_equations():
    def shapes(operator: str, model: str) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in Implicit(operator, 8, model=model, std=0.1).named_parameters()}

    assert shapes("add", "vector") == {"z": (8,)}
    assert shapes("multiply", "network") == {"z": (16,), "phi": (8, 16)}
    assert shapes("concat", "factors") == {"z": (2, 8), "phi": (2,)}


def test_constants_equal_their_equations():
    torch.manual_seed(0)
    network, factors = (Implicit("add", 6, model=model, std=1.0) for model in ("network", "factors"))
    torch.testing.assert_close(network.constant(), torch.einsum("cn,n->c", network.phi, network.z))
    torch.testing.assert_close(factors.constant(), torch.einsum("nc,n->c", factors.z, factors.phi))


def test_operators_join_features_and_constants():
    x = torch.arange(8.0).view(1, 2, 2, 2)
    for operator, expected in {
        "add": x + torch.tensor([3.0, 5.0]).view(1, 2, 1, 1),
        "multiply": x * torch.tensor([3.0, 5.0]).view(1, 2, 1, 1),
        "concat": torch.cat((torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 5.0), x), dim=1),
    }.items():
        implicit = Implicit(operator, 2, std=0.0)
        nn.init.zeros_(implicit.z)
        implicit.z.data += torch.tensor([3.0, 5.0])
        assert torch.equal(implicit(x), expected)
    both = Implicit("add_multiply", 2, std=0.0, added_channels=[1])
    assert both.constant().tolist() == [1.0, 0.0], "neutral: the first channel is multiplied, the second has a summand"
    both.z.data += torch.tensor([2.0, 5.0])
    assert torch.equal(both(x), torch.stack((3 * x[:, 0], x[:, 1] + 5), dim=1))


def test_a_projection_gives_inner_products_of_half_as_many_channels():
    torch.manual_seed(0)
    x, directions = torch.randn(2, 6, 3, 5), torch.randn(3, 6)
    projection = Projection(directions)
    torch.testing.assert_close(projection(x), torch.einsum("rc,bchw->brhw", directions, x))
    for level in make_tiny_network(replace(PLAIN, align="project")).head.levels:
        assert level.align.z.shape == (level.conv.conv.out_channels // 2, level.conv.conv.out_channels)
        assert level.predict.in_channels == len(level.align.z)


@pytest.mark.parametrize("kernel", [1, 3])
def test_principal_directions_keep_the_most_of_a_convolution(kernel):
    """The best approximation of rank R, by the theorem of Eckart and Young; oracle: the singular value decomposition."""
    torch.manual_seed(0)
    weight = torch.randn(5, 8, kernel, kernel).double()
    for count in (2, 5):
        z = principal_directions(weight, count)
        torch.testing.assert_close(z @ z.T, torch.eye(count).double())
        rest = (unproject_weight(project_weight(weight, z), z) - weight).square().sum()
        values = torch.linalg.svdvals(weight.permute(0, 2, 3, 1).reshape(-1, 8))
        torch.testing.assert_close(rest, values[count:].square().sum())


@torch.inference_mode()
def test_a_fresh_projection_is_neutral_before_a_convolution_with_fewer_outputs_than_dimensions():
    torch.manual_seed(0)
    plain, projected = (ClassifyHead(replace(TINY), OutputCounts(3, image_classes=4)).eval() for _ in range(2))
    projected.load_state_dict(plain.state_dict())
    for level in projected.levels:
        level.add_implicit(replace(PLAIN, align="project"))
    features = [torch.randn(2, channels, 4, 4) for channels in (8, 12)]
    torch.testing.assert_close(projected(features), plain(features))


@torch.inference_mode()
def test_each_anchor_can_have_its_own_alignment(plain):
    """The paper's FA*: the same prediction convolution, with a prior for each anchor's outputs."""
    per_anchor, image = with_implicit(plain, replace(PLAIN, align="multiply", align_per="anchor")), torch.rand(1, 3, 64, 64)
    for level in per_anchor.head.levels:
        level.align.z.view(3, -1).copy_(torch.tensor([[1.0], [2.0], [1.0]]))
    for expected, output in zip(plain(image)["detect"], per_anchor(image)["detect"], strict=True):
        torch.testing.assert_close(output[:, [0, 2]], expected[:, [0, 2]])
        assert (output[:, 1] - expected[:, 1]).abs().mean() > 0.01


@torch.inference_mode()
def test_refining_sizes_does_not_change_the_other_outputs(plain):
    """The paper's PR*: only width and height are multiplied."""
    refined, image = with_implicit(plain, replace(PLAIN, refine="multiply", refine_what="size")), torch.rand(1, 3, 64, 64)
    for level in refined.head.levels:
        assert level.refine.z.numel() == 2 * 3
        level.refine.z.fill_(3.0)
    for expected, output in zip(plain(image)["detect"], refined(image)["detect"], strict=True):
        torch.testing.assert_close(output[..., 2:4], 3 * expected[..., 2:4])
        assert torch.equal(output[..., [0, 1, 4, 5, 6, 7]], expected[..., [0, 1, 4, 5, 6, 7]])


@torch.inference_mode()
def test_refining_centres_does_not_change_the_other_outputs(plain):
    """Section 3.3: addition refines the offset of a centre."""
    refined, image = with_implicit(plain, replace(PLAIN, refine="add", refine_what="centre")), torch.rand(1, 3, 64, 64)
    for level in refined.head.levels:
        assert level.refine.z.numel() == 2 * 3
        level.refine.z.fill_(3.0)
    for expected, output in zip(plain(image)["detect"], refined(image)["detect"], strict=True):
        torch.testing.assert_close(output[..., :2], expected[..., :2] + 3)
        assert torch.equal(output[..., 2:], expected[..., 2:])


@torch.inference_mode()
def test_add_multiply_adds_to_centres_and_multiplies_all_other_outputs(plain):
    refined, image = with_implicit(plain, replace(PLAIN, refine="add_multiply")), torch.rand(1, 3, 64, 64)
    for level in refined.head.levels:
        level.refine.z.fill_(3.0)
    for expected, output in zip(plain(image)["detect"], refined(image)["detect"], strict=True):
        torch.testing.assert_close(output[..., :2], expected[..., :2] + 3)
        torch.testing.assert_close(output[..., 2:], 3 * expected[..., 2:])


@forms
def test_every_prior_gets_a_gradient(form):
    network = make_tiny_network(replace(PLAIN, **form)).train()
    sum(level.square().mean() for level in network(torch.rand(2, 3, 64, 64))["detect"]).backward()
    priors = {name: p for name, p in network.named_parameters() if name.endswith((".z", ".phi"))}
    assert priors
    for name, parameter in priors.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"align": "project", "align_by": "network"}, r"network.implicit.align_by: found 'network', expected vector"),
        ({"align_per": "anchor", "align_at": "pyramid"}, r"network.implicit.align_at: found 'pyramid', expected prediction"),
        ({"align_per": "anchor", "align_by": "factors"}, r"network.implicit.align_by: found 'factors', expected vector"),
        ({"align_per": "anchor", "align": "none"}, r"network.implicit.align: found 'none', expected add, multiply or concat"),
        (
            {"refine": "add_multiply", "refine_what": "size"},
            r"network.implicit.refine_what: found 'size', expected all, as .* add_multiply",
        ),
        ({"std": -0.1}, r"network.implicit.std: found -0.1, expected 0 or more"),
    ],
)
def test_incompatible_settings_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        ImplicitConfig(**values)

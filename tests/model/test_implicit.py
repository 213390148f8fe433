"""Implicit knowledge in all its forms: neutral at the start, learned like other weights, one word each in the configuration."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.errors import ConfigError
from yolor_ray.model.implicit import Implicit
from yolor_ray.model.network import Yolor

PLAIN = ImplicitConfig(align="none", refine="none")
FORMS = [
    *({"align": align, "align_at": place} for align in ("add", "multiply", "concat", "project") for place in ("prediction", "pyramid")),
    *({"align": align, "align_by": model} for align in ("add", "multiply", "concat") for model in ("network", "factors")),
    *({"align": align, "align_per": "anchor"} for align in ("add", "multiply", "concat")),
    *(
        {"refine": refine, "refine_by": model, "refine_what": what}
        for refine in ("add", "multiply")
        for model in ("vector", "network", "factors")
        for what in ("all", "size")
    ),
]
forms = pytest.mark.parametrize("form", FORMS, ids=["-".join(form.values()) for form in FORMS])
TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 24), depths=(1, 1, 1), levels=2, neck_depth=1)
ANCHORS = torch.tensor([[[8.0, 10.0], [16.0, 12.0], [12.0, 24.0]], [[30.0, 30.0], [60.0, 32.0], [40.0, 80.0]]])


def network_with(implicit: ImplicitConfig) -> Yolor:
    torch.manual_seed(0)
    return Yolor(replace(TINY, implicit=implicit), 3, ANCHORS)


@pytest.fixture(scope="module")
def plain() -> Yolor:
    """A network without implicit knowledge whose features are as large as in training."""
    network = network_with(PLAIN)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.rand(16, 3, 64, 64))
    return network.eval()


@torch.no_grad()
def taught(plain: Yolor, implicit: ImplicitConfig) -> Yolor:
    """Return a network with implicit knowledge and, where it sees features, the plain network's weights."""
    network = network_with(implicit).eval()
    own = network.state_dict()
    for name, tensor in plain.state_dict().items():
        half = own[name].shape[1] // 2 if own[name].shape != tensor.shape else 0
        (own[name][:, half:] if half else own[name]).copy_(tensor)
    return network


def without_priors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith((".z", ".phi"))}


@forms
def test_a_network_starts_from_the_explicit_weights_that_it_has_without_implicit_knowledge(form):
    plain, network = (without_priors(network_with(implicit).state_dict()) for implicit in (PLAIN, replace(PLAIN, **form)))
    assert plain.keys() == network.keys()
    for name, tensor in plain.items():
        # The convolution behind a concatenated prior sees that first, and then the same as the plain one.
        wider = network[name].shape != tensor.shape
        assert not wider or (form.get("align") == "concat" and name.split(".", 3)[3] in ("predict.weight", "conv.conv.weight"))
        assert torch.equal(tensor, network[name][:, -tensor.shape[1] :] if wider else network[name]), name


@forms
@torch.inference_mode()
def test_implicit_knowledge_changes_next_to_nothing_at_the_start(plain, form):
    network, image = taught(plain, replace(PLAIN, **form)), torch.rand(2, 3, 64, 64)
    for found, expected in zip(network(image)["detect"], plain(image)["detect"], strict=True):
        assert 1e-5 < (found - expected).abs().mean() / expected.std() < 0.05


@pytest.mark.parametrize("operator", ["add", "multiply", "concat", "project"])
@pytest.mark.parametrize("model", ["vector", "network", "factors"])
def test_a_fresh_prior_is_neutral_whatever_makes_it(operator, model):
    """The ancestor's network and matrix factorisation start at a gain of 0 ± 0.58 under multiplication."""
    torch.manual_seed(0)
    g = Implicit(operator, 500, model=model, std=0.02).constant().detach()
    neutral = 1.0 if operator in ("multiply", "project") else 0.0
    assert g.shape == (500,)
    assert g.mean().item() == pytest.approx(neutral, abs=0.01)
    assert (g - neutral).abs().max() < 0.1
    assert g.std() > 1e-3


def test_a_published_prior_is_drawn_with_the_published_spread():
    torch.manual_seed(0)
    for operator, mean in (("add", 0.0), ("multiply", 1.0)):
        prior = Implicit(operator, 4000, std=0.02)
        assert prior.z.mean().item() == pytest.approx(mean, abs=0.002)
        assert prior.z.std().item() == pytest.approx(0.02, rel=0.1)
        assert torch.equal(prior.constant(), prior.z)


def test_priors_are_as_large_as_their_equations_say():
    def shapes(operator: str, model: str) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in Implicit(operator, 8, model=model, std=0.1).named_parameters()}

    assert shapes("add", "vector") == {"z": (8,)}
    assert shapes("multiply", "network") == {"z": (16,), "phi": (8, 16)}
    assert shapes("concat", "factors") == {"z": (2, 8), "phi": (2,)}
    assert shapes("project", "vector") == {"z": (16,), "phi": (8, 16)}


def test_constants_follow_their_equations():
    torch.manual_seed(0)
    network, factors = (Implicit("add", 6, model=model, std=1.0) for model in ("network", "factors"))
    torch.testing.assert_close(network.constant(), torch.einsum("cn,n->c", network.phi, network.z))
    torch.testing.assert_close(factors.constant(), torch.einsum("nc,n->c", factors.z, factors.phi))
    project = Implicit("project", 6, std=1.0)
    torch.testing.assert_close(project.constant(), torch.stack([2 * torch.sigmoid(p @ project.z) for p in project.phi]))


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


@torch.inference_mode()
def test_each_anchor_may_see_features_of_its_own(plain):
    """The paper's FA*: the same prediction convolution, with a prior for each anchor's outputs."""
    split, image = taught(plain, replace(PLAIN, align="multiply", align_per="anchor")), torch.rand(1, 3, 64, 64)
    for level in split.head.levels:
        level.align.z.view(3, -1).copy_(torch.tensor([[1.0], [2.0], [1.0]]))
    for expected, found in zip(plain(image)["detect"], split(image)["detect"], strict=True):
        torch.testing.assert_close(found[:, [0, 2]], expected[:, [0, 2]])
        assert (found[:, 1] - expected[:, 1]).abs().mean() > 0.01


@torch.inference_mode()
def test_refining_sizes_alone_leaves_the_other_outputs(plain):
    """The paper's PR*: only width and height are multiplied."""
    refined, image = taught(plain, replace(PLAIN, refine="multiply", refine_what="size")), torch.rand(1, 3, 64, 64)
    for level in refined.head.levels:
        assert level.refine.z.numel() == 2 * 3
        level.refine.z.fill_(3.0)
    for expected, found in zip(plain(image)["detect"], refined(image)["detect"], strict=True):
        torch.testing.assert_close(found[..., 2:4], 3 * expected[..., 2:4])
        assert torch.equal(found[..., [0, 1, 4, 5, 6, 7]], expected[..., [0, 1, 4, 5, 6, 7]])


@forms
def test_every_prior_learns(form):
    network = network_with(replace(PLAIN, **form)).train()
    sum(level.square().mean() for level in network(torch.rand(2, 3, 64, 64))["detect"]).backward()
    priors = {name: p for name, p in network.named_parameters() if name.endswith((".z", ".phi"))}
    assert priors
    for name, parameter in priors.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"align": "project", "align_by": "network"}, r"network.implicit.align_by: found 'network', expected vector"),
        ({"align_per": "anchor", "align_at": "pyramid"}, r"network.implicit.align_at: found 'pyramid', expected prediction"),
        ({"align_per": "anchor", "align_by": "factors"}, r"network.implicit.align_by: found 'factors', expected vector"),
        ({"align_per": "anchor", "align": "none"}, r"network.implicit.align: found 'none', expected add, multiply or concat"),
        ({"std": -0.1}, r"network.implicit.std: found -0.1, expected 0 or more"),
    ],
)
def test_forms_that_do_not_go_together_are_refused(values, fault):
    with pytest.raises(ConfigError, match=fault):
        ImplicitConfig(**values)

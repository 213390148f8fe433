"""Trials of an ablation: equal except for the compared settings, with measured costs and learned priors."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from first_steps import first_steps
from yolor_ray.config import AugmentConfig, ClusterConfig, DataConfig, NetworkConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.config.dotted import flatten
from yolor_ray.config.presets import PLAIN
from yolor_ray.config.study import AblationConfig
from yolor_ray.config.variants import BASELINE, VARIANTS
from yolor_ray.errors import ConfigError, NonFiniteLossError
from yolor_ray.model.implicit import project_weight
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights, save_weights
from yolor_ray.study.ablation.costs import measure_costs, read_priors
from yolor_ray.study.ablation.run import make_specs
from yolor_ray.study.workspace import check_pretrained, folder_name, resolve_data
from yolor_ray.train.run import train

pytestmark = pytest.mark.usefixtures("undrawn")

TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1)
CLASSES = ("a", "b", "c", "d", "e", "f")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    return TrainConfig(
        network=replace(TINY, implicit=PLAIN),
        data=DataConfig(train="scenes:9", val="scenes:3", image_px=64),
        augment=AugmentConfig(mixup=0.3, multi_scale=0.3),
        optim=OptimConfig(epochs=2, batch=4, nominal_batch=4),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=str(tmp_path_factory.mktemp("studies")), name="study"),
    )


def test_every_variant_is_trained_with_every_seed_at_every_setting(config):
    study = AblationConfig(train=config, variants=("fa-add", "pr-multiply"), seeds=2, search=("optim.lr=0.01,0.02", "loss.box=0.05,0.1"))
    specs = make_specs(study, "/studies/study")
    trials = [(spec.config.run.seed, spec.setting, spec.variant) for spec in specs]
    settings = [f"optim.lr={lr} loss.box={box}" for lr in (0.01, 0.02) for box in (0.05, 0.1)]
    assert trials == [(seed, s, v) for seed in (0, 1) for s in settings for v in (BASELINE, "fa-add", "pr-multiply")]
    assert len({spec.run for spec in specs}) == len(specs)
    assert specs[4].run == "/studies/study/trials/fa-add-optim.lr=0.01-loss.box=0.1-seed0"
    assert (specs[4].config.optim.lr, specs[4].config.loss.box) == (0.01, 0.1)


def test_trials_of_a_seed_differ_in_implicit_knowledge_and_name_only(config):
    specs = make_specs(AblationConfig(train=config, seeds=1), "/studies/study")
    assert [spec.variant for spec in specs] == list(VARIANTS)
    settings = [flatten(dataclasses.asdict(spec.config)) for spec in specs]
    differing = {name for name in settings[0] if len({str(values[name]) for values in settings}) > 1}
    assert all(name.startswith("network.implicit.") or name == "run.name" for name in differing)
    assert [spec.config.network.implicit for spec in specs] == [variant.implicit for variant in VARIANTS.values()]
    epochs = config.optim.epochs
    assert all(values["run.validate_epochs"] == epochs for values in settings), "the best of several validations would favour noise"


def test_all_variants_start_with_equal_shared_weights_and_see_the_same_images(config, monkeypatch):
    specs = make_specs(AblationConfig(train=resolve_data(config)[0], seeds=1), f"{config.run.storage}/fair")
    baseline, expected = first_steps(specs[0].config, monkeypatch)
    for spec in specs[1:]:
        weights, images = first_steps(spec.config, monkeypatch)
        assert all(np.array_equal(a, b) for a, b in zip(images, expected, strict=True)), spec.variant
        for name, tensor in baseline.items():
            # The first input channels of a convolution after a concatenated prior are the prior's.
            shared = weights[name][:, -tensor.shape[1] :] if tensor.dim() == 4 else weights[name]
            if spec.variant == "fa-project" and name.endswith("predict.weight"):
                tensor = project_weight(tensor, weights[name.replace("predict.weight", "align.z")])
            assert torch.equal(shared, tensor), (spec.variant, name)


def test_another_seed_has_other_initial_weights_and_another_order(config, monkeypatch):
    study = AblationConfig(train=resolve_data(config)[0], variants=(), seeds=2)
    specs = make_specs(study, f"{config.run.storage}/seeds")
    (weights, images), (other_weights, other_images) = (first_steps(spec.config, monkeypatch) for spec in specs)
    assert not torch.equal(weights["head.levels.0.predict.weight"], other_weights["head.levels.0.predict.weight"])
    assert not np.array_equal(images[0], other_images[0])


def test_folder_names_are_valid_and_distinct():
    assert folder_name("fa-add-optim.lr=0.01-seed0") == "fa-add-optim.lr=0.01-seed0"
    names = [folder_name(f"data.train={url}") for url in ("s3://b/a", "s3://b_a", "s3:..b..a")]
    assert len(set(names)) == 3
    assert all("/" not in name for name in names)
    long = [folder_name("optim.lr=0.01-" * 30 + end) for end in ("a", "b")]
    assert len(set(long)) == 2 and max(map(len, long)) < 200


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 0}, "seeds: found 0, expected 1 or more"),
        ({"max_concurrent_trials": -1}, "max_concurrent_trials: found -1, expected 0 or more"),
        ({"variants": ("fa-add", "fa-add")}, "variants: found .*, expected each name once"),
        ({"search": ("optim.lr=1e-3..1e-1",)}, "search: found the range"),
        ({"search": ("network.implicit.std=0.1,0.2",)}, "use --variants"),
        ({"search": ("run.seed=1,2",)}, "repeats each trial with --seeds"),
        ({"train": TrainConfig()}, "network.implicit: found .*, expected none: --variants defines"),
        (
            {"train": TrainConfig(network=NetworkConfig(implicit=PLAIN), run=RunConfig(validate_epochs=3))},
            "run.validate_epochs: found 3, expected 10",
        ),
        ({"search": ("optim.rate=1,2",)}, "optim.rate: found no setting of that name"),
    ],
)
def test_an_invalid_ablation_is_refused_before_training(config, fields, message):
    with pytest.raises(ConfigError, match=message):
        AblationConfig(**{"train": config, **fields})


@pytest.fixture(scope="module")
def weights(config, tmp_path_factory) -> dict[str, str]:
    """Save untrained weights of three variants; the value has their URLs by variant."""
    urls = {}
    for variant in (BASELINE, "pr-multiply-size", "fa-concat"):
        network = Yolor(replace(config.network, implicit=VARIANTS[variant].implicit), len(CLASSES), torch.ones(3, 3, 2))
        urls[variant] = str(tmp_path_factory.mktemp("weights") / variant)
        save_weights(urls[variant], network, WeightsInfo(variant, CLASSES, 64, {}))
    return urls


@pytest.mark.usefixtures("one_thread")
def test_implicit_knowledge_costs_its_parameters_and_nothing_when_fused(weights, monkeypatch):
    rounds = []

    def slow_down(functions, *_, **__):
        """Call each function once; each round takes longer than the one before, and an unfused network twice as long as a fused one."""
        for function in functions.values():
            function()
        rounds.append({name: 0.01 * (len(rounds) + 1) * (2 if name.endswith("unfused") else 1) for name in functions})
        return [rounds[-1]]

    monkeypatch.setattr("yolor_ray.study.ablation.costs.time_interleaved", slow_down)
    monkeypatch.setattr("yolor_ray.study.ablation.costs.available_cores", lambda: 1)
    costs, machine = measure_costs(weights, BASELINE, gpu=False)
    assert "1 threads" in machine
    baseline, size, concat = costs[BASELINE], costs["pr-multiply-size"], costs["fa-concat"]
    assert size.parameters - baseline.parameters == 3 * (3 * 2), "three levels of three anchors' widths and heights"
    widths, outputs = (16, 16, 16), 3 * (5 + len(CLASSES))
    assert concat.parameters - baseline.parameters == sum(w + outputs * w for w in widths), "the priors, and the weights on them"
    for cost in costs.values():
        assert (cost.fused_parameters, cost.fused_flops) == (baseline.fused_parameters, baseline.fused_flops)
        assert (cost.unfused_ms, cost.fused_ms) == pytest.approx((20, 10)), "scaled to the first latency of the baseline"


def test_priors_have_their_role_level_and_shape(weights):
    assert read_priors(load_weights(weights[BASELINE])[0]) == ()
    size = read_priors(load_weights(weights["pr-multiply-size"])[0])
    assert [(p.role, p.level, p.operator, p.values.shape) for p in size] == [("refine", level, "multiply", (3, 11)) for level in range(3)]
    assert all((p.values[:, [0, 1, *range(4, 11)]] == 1).all() and (p.values[:, 2:4] != 1).all() for p in size)
    concat = read_priors(load_weights(weights["fa-concat"])[0])
    assert [(p.role, p.values.shape) for p in concat] == [("align", (16,))] * 3


def test_priors_of_two_operators_are_two_and_a_projection_has_a_length_for_each_channel():
    network = Yolor(replace(TINY, implicit=VARIANTS["pr-add-multiply"].implicit), len(CLASSES), torch.ones(3, 3, 2))
    priors = read_priors(network)
    assert [(p.level, p.operator) for p in priors] == [(level, operator) for level in range(3) for operator in ("add", "multiply")]
    added, multiplied = (np.isfinite(p.values) for p in priors[:2])
    assert added[:, :2].all() and not added[:, 2:].any() and np.array_equal(multiplied, ~added)
    network = Yolor(replace(TINY, implicit=VARIANTS["fa-project"].implicit), len(CLASSES), torch.ones(3, 3, 2))
    lengths = [p.values for p in read_priors(network) if p.operator == "project"]
    assert [values.shape for values in lengths] == [(16,)] * 3
    assert all(np.square(values).sum() == pytest.approx(8) for values in lengths), "8 vectors of length 1"


def test_priors_of_a_head_without_anchors_are_those_of_both_branches():
    implicit = VARIANTS["pr-multiply-size"].implicit
    network = Yolor(replace(TINY, head="free", implicit=implicit), len(CLASSES))
    size = read_priors(network)
    assert [(p.role, p.level, p.operator, p.values.shape) for p in size] == [("refine", level, "multiply", (1, 10)) for level in range(3)]
    assert all((p.values[:, :4] != 1).all() and (p.values[:, 4:] == 1).all() for p in size)
    aligned = read_priors(Yolor(replace(TINY, head="free", implicit=VARIANTS["fa-add"].implicit), len(CLASSES)))
    assert [(p.role, p.values.shape) for p in aligned] == [("align", (8 + 64,))] * 3


def test_variants_that_need_anchors_are_left_out_or_refused_without_anchors(config):
    free = replace(config, network=replace(config.network, head="free"))
    names = [spec.variant for spec in make_specs(AblationConfig(train=free, seeds=1), "/studies/study")]
    need_anchors = {"fa-multiply-anchor", "pr-add-centre", "pr-add-multiply"}
    assert names == [name for name in VARIANTS if name not in need_anchors]
    with pytest.raises(ConfigError, match="variants: found 'fa-multiply-anchor', expected a variant without anchors"):
        AblationConfig(train=free, variants=("fa-add", "fa-multiply-anchor"))


def test_a_run_without_a_finite_gradient_publishes_no_weights(config):
    diverging = resolve_data(replace(config, optim=replace(config.optim, lr=1e9, epochs=9)))[0]
    with pytest.raises(NonFiniteLossError, match="no finite gradient"):
        train(replace(diverging, run=replace(diverging.run, name="hot")))
    assert not (Path(config.run.storage) / "hot" / "weights").exists()


def test_pretrained_weights_with_implicit_knowledge_are_refused(config, weights):
    with pytest.raises(ConfigError, match=r"optim\.pretrained: found weights with implicit knowledge \(align none, refine multiply\)"):
        check_pretrained(weights["pr-multiply-size"])
    check_pretrained(weights[BASELINE])
    study = AblationConfig(train=replace(config, optim=replace(config.optim, pretrained="runs/base/weights")), seeds=1)
    urls = {spec.config.optim.pretrained for spec in make_specs(study, "/s")}
    assert urls == {str(Path.cwd() / "runs/base/weights")}, "trials run in another working directory"

"""An ablation's trials: they differ in nothing but what is compared."""

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
from yolor_ray.io import storage
from yolor_ray.model.weights import load_weights
from yolor_ray.study.ablation.costs import costs_of, priors_of
from yolor_ray.study.ablation.run import make_specs
from yolor_ray.study.workspace import check_start, folder_name, lock_study, with_data
from yolor_ray.train.run import train

TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> TrainConfig:
    return TrainConfig(
        network=replace(TINY, implicit=PLAIN),
        data=DataConfig(train="scenes:9", val="scenes:3", image_px=64),
        augment=AugmentConfig(mixup=0.3, multi_scale=0.3),
        optim=OptimConfig(epochs=2, batch=4, nominal_batch=4),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=str(tmp_path_factory.mktemp("studies")), name="study"),
    )


def test_every_variant_is_trained_with_every_seed_at_every_setting(run):
    study = AblationConfig(train=run, variants=("fa-add", "pr-multiply"), seeds=2, search=("optim.lr=0.01,0.02", "loss.box=0.05,0.1"))
    planned = make_specs(study, "/studies/study")
    found = [(one.config.run.seed, one.setting, one.variant) for one in planned]
    settings = [f"optim.lr={lr} loss.box={box}" for lr in (0.01, 0.02) for box in (0.05, 0.1)]
    assert found == [(seed, s, v) for seed in (0, 1) for s in settings for v in (BASELINE, "fa-add", "pr-multiply")]
    assert len({one.run for one in planned}) == len(planned)
    assert planned[4].run == "/studies/study/trials/fa-add-optim.lr=0.01-loss.box=0.1-seed0"
    assert (planned[4].config.optim.lr, planned[4].config.loss.box) == (0.01, 0.1)


def test_trials_of_a_seed_differ_in_their_implicit_knowledge_and_their_names_alone(run):
    planned = make_specs(AblationConfig(train=run, seeds=1), "/studies/study")
    assert [one.variant for one in planned] == list(VARIANTS)
    settings = [flatten(dataclasses.asdict(one.config)) for one in planned]
    differing = {name for name in settings[0] if len({str(each[name]) for each in settings}) > 1}
    assert all(name.startswith("network.implicit.") or name == "run.name" for name in differing)
    assert [one.config.network.implicit for one in planned] == [variant.implicit for variant in VARIANTS.values()]
    assert all(each["run.validate_epochs"] == run.optim.epochs for each in settings), "the best of several validations would favour noise"


def test_all_variants_start_from_the_same_shared_weights_and_see_the_same_images(run, monkeypatch):
    planned = make_specs(AblationConfig(train=with_data(run)[0], seeds=1), f"{run.run.storage}/fair")
    baseline, expected = first_steps(planned[0].config, monkeypatch)
    for one in planned[1:]:
        weights, images = first_steps(one.config, monkeypatch)
        assert all(np.array_equal(a, b) for a, b in zip(images, expected, strict=True)), one.variant
        for name, tensor in baseline.items():
            # Behind a concatenated prior, a convolution sees the prior first, and then what the baseline's sees.
            found = weights[name][:, -tensor.shape[1] :] if tensor.dim() == 4 else weights[name]
            assert torch.equal(found, tensor), (one.variant, name)


def test_another_seed_is_another_start_and_another_order(run, monkeypatch):
    study = AblationConfig(train=with_data(run)[0], variants=(), seeds=2)
    (one, images), (other, others) = (first_steps(each.config, monkeypatch) for each in make_specs(study, f"{run.run.storage}/seeds"))
    assert not torch.equal(one["head.levels.0.predict.weight"], other["head.levels.0.predict.weight"])
    assert not np.array_equal(images[0], others[0])


def test_a_study_goes_on_with_more_seeds_but_not_with_another_recipe(run):
    lock_study("ablation", run, ("optim.lr=0.01,0.02",))
    lock_study("ablation", replace(run, cluster=ClusterConfig(workers="2")), ("optim.lr=0.01,0.02",))
    with pytest.raises(ConfigError, match="study: found a study of that name, expected a run or nothing"):
        train(run)
    longer = replace(run, optim=replace(run.optim, epochs=5))
    with pytest.raises(ConfigError, match=r"study\.json: .*train\.optim\.epochs was 2 and is now 5; .* new run\.name"):
        lock_study("ablation", longer, ("optim.lr=0.01,0.02",))
    with pytest.raises(ConfigError, match=r"search was \['optim.lr=0.01,0.02'\] and is now \[\]"):
        lock_study("ablation", run, ())
    with pytest.raises(ConfigError, match="kind was 'ablation' and is now 'search'"):
        lock_study("search", run, ("optim.lr=0.01,0.02",))
    with pytest.raises(ConfigError, match="seed was 0 and is now 7"):
        lock_study("ablation", replace(run, run=replace(run.run, seed=7)), ("optim.lr=0.01,0.02",))


def test_a_study_is_not_put_into_the_folder_of_a_run(run):
    storage.write_bytes(f"{run.run.storage}/ran/config.json", b"{}")
    with pytest.raises(ConfigError, match=r"ran: found a run of that name, expected a study or nothing; choose a new run\.name"):
        lock_study("ablation", replace(run, run=replace(run.run, name="ran")), ())


def test_folders_are_named_by_settings_and_never_share_a_name():
    assert folder_name("fa-add-optim.lr=0.01-seed0") == "fa-add-optim.lr=0.01-seed0"
    odd = [folder_name(f"data.train={url}") for url in ("s3://b/a", "s3://b_a", "s3:..b..a")]
    assert len(set(odd)) == 3
    assert all("/" not in name for name in odd)
    long = [folder_name("optim.lr=0.01-" * 30 + end) for end in ("a", "b")]
    assert len(set(long)) == 2 and max(map(len, long)) < 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"seeds": 0}, "seeds: found 0, expected 1 or more"),
        ({"max_concurrent_trials": -1}, "max_concurrent_trials: found -1, expected 0 or more"),
        ({"variants": ("fa-add", "fa-add")}, "variants: found .*, expected each name once"),
        ({"search": ("optim.lr=1e-3..1e-1",)}, "search: found the range"),
        ({"search": ("network.implicit.std=0.1,0.2",)}, "use --variants"),
        ({"search": ("run.seed=1,2",)}, "repeats everything with --seeds"),
        ({"train": TrainConfig()}, "network.implicit: found .*, expected the study's own: --variants says"),
        (
            {"train": TrainConfig(network=NetworkConfig(implicit=PLAIN), run=RunConfig(validate_epochs=3))},
            "run.validate_epochs: found 3, expected 10",
        ),
        ({"search": ("optim.rate=1,2",)}, "optim.rate: found no setting of that name"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused_before_anything_is_trained(run, words, message):
    with pytest.raises(ConfigError, match=message):
        AblationConfig(**{"train": run, **words})


@pytest.fixture(scope="module")
def trained(run) -> dict[str, str]:
    """Weights of three variants, by name."""
    study = AblationConfig(train=with_data(run)[0], variants=("pr-multiply-size", "fa-concat"), seeds=1)
    return {one.variant: train(one.config)["weights"] for one in make_specs(study, f"{run.run.storage}/costs")}


@pytest.mark.usefixtures("one_thread")
def test_variants_cost_what_they_add_and_nothing_when_fused(trained, monkeypatch):
    monkeypatch.setattr("yolor_ray.study.ablation.costs.ROUNDS", 1)
    monkeypatch.setattr("yolor_ray.study.ablation.costs.cores", lambda: 1)
    costs, place = costs_of(trained, BASELINE, gpu=False)
    assert "1 threads" in place
    baseline, size, concat = costs[BASELINE], costs["pr-multiply-size"], costs["fa-concat"]
    assert size.parameters - baseline.parameters == 3 * (3 * 2), "three levels of three anchors' widths and heights"
    widths, outputs = (16, 16, 16), 3 * (5 + 6)
    assert concat.parameters - baseline.parameters == sum(w + outputs * w for w in widths), "the priors, and the weights that see them"
    for cost in costs.values():
        assert (cost.fused_parameters, cost.fused_flops) == (baseline.fused_parameters, baseline.fused_flops)
        assert cost.unfused_ms > 0 < cost.fused_ms


def test_priors_are_told_by_place_and_level_in_the_shape_that_is_drawn(trained):
    assert priors_of(load_weights(trained[BASELINE])[0]) == ()
    size = priors_of(load_weights(trained["pr-multiply-size"])[0])
    assert [(p.place, p.level, p.operator, p.values.shape) for p in size] == [("refine", level, "multiply", (3, 11)) for level in range(3)]
    assert all((p.values[:, [0, 1, *range(4, 11)]] == 1).all() and (p.values[:, 2:4] != 1).all() for p in size)
    concat = priors_of(load_weights(trained["fa-concat"])[0])
    assert [(p.place, p.values.shape) for p in concat] == [("align", (16,))] * 3


def test_a_run_without_a_finite_gradient_is_no_result(run):
    config = with_data(replace(run, optim=replace(run.optim, lr=1e9, epochs=9)))[0]
    with pytest.raises(NonFiniteLossError, match="no finite gradient"):
        train(replace(config, run=replace(config.run, name="hot")))
    assert not (Path(run.run.storage) / "hot" / "weights").exists()


def test_variants_never_start_from_weights_that_have_grown_with_one_of_them(run, trained):
    with pytest.raises(ConfigError, match=r"optim\.pretrained: found weights with implicit knowledge \(align none, refine multiply\)"):
        check_start(trained["pr-multiply-size"])
    check_start(trained[BASELINE])
    study = AblationConfig(train=replace(run, optim=replace(run.optim, pretrained="runs/base/weights")), seeds=1)
    found = {one.config.optim.pretrained for one in make_specs(study, "/s")}
    assert found == {str(Path.cwd() / "runs/base/weights")}, "trials run in another folder"

"""Arguments of `--search`: the dimensions that they define, and refusals before a study starts."""

from dataclasses import replace

import pytest

from yolor_ray.config import TrainConfig
from yolor_ray.config.dotted import replace_fields
from yolor_ray.config.presets import PRESETS
from yolor_ray.config.search_space import RECIPE, Choice, Range, ablation_choices, search_space, start_values
from yolor_ray.errors import ConfigError


def test_an_ablation_has_one_dimension_for_each_argument():
    arguments = ["optim.lr=1e-2,2e-2", "network.stem=conv,csp", "network.depths=1 2 8 8 4,1 1 1 1 1"]
    assert ablation_choices(TrainConfig(), arguments) == {
        "optim.lr": (0.01, 0.02),
        "network.stem": ("conv", "csp"),
        "network.depths": ((1, 2, 8, 8, 4), (1, 1, 1, 1, 1)),
    }
    assert ablation_choices(TrainConfig(), []) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.lr"], "search: found 'optim.lr', expected NAME=VALUE,VALUE"),
        (["optim.lrr=1,2"], "optim.lrr: found no setting of that name, expected optim.lr"),
        (["optim.lr=1e-3..1e-1"], "search: found the range optim.lr=1e-3..1e-1, expected values, such as optim.lr=1e-3,1e-1"),
        (["optim.lr=0.1"], "expected two values or more; one value is set by --optim.lr"),
        (["optim.lr=0.1,fast"], "optim.lr: found 'fast', expected a finite number"),
        (["optim.lr=0.1,-1.0"], "optim.lr: found -1.0, expected 0 or more"),
        (["optim.lr=0.1,1e-1"], "expected each value once"),
        (["optim.lr=0.1,0.2", "optim.lr=0.3,0.4"], "expected optim.lr once"),
        (["network.implicit.align=add,none"], "use --variants"),
        (["run.seed=1,2"], "--seeds"),
        (["run.validate_epochs=1,2"], "the trained network does not depend on it"),
        (["cluster.workers=1,2"], "the trained network does not depend on it"),
        (["data.decode_threads=1,2"], "the trained network does not depend on it"),
        (["data.val=a,b"], "the same images"),
        (["optim.patience=0,5"], "the trials of a comparison train equal epochs"),
        (["network.levels=3,4"], "network.widths: found"),
    ],
)
def test_an_ablation_refuses_arguments_that_it_cannot_vary(arguments, message):
    with pytest.raises(ConfigError) as refusal:
        ablation_choices(TrainConfig(), arguments)
    assert message in str(refusal.value)


def test_a_value_is_checked_against_the_rest_of_the_run():
    assert ablation_choices(PRESETS["csp"], ["data.image_px=640,672"])
    with pytest.raises(ConfigError, match=r"data\.image_px: found 672, expected a multiple of the coarsest stride, 64"):
        ablation_choices(PRESETS["p6"], ["data.image_px=640,672"])


@pytest.mark.parametrize("name", PRESETS)
def test_a_search_can_start_from_every_preset(name):
    train = PRESETS[name]
    dimensions = search_space(train, [])
    names = [argument.partition("=")[0] for argument in RECIPE]
    assert list(dimensions) == [name for name in names if not (train.optim.pretrained and name.startswith("network."))]
    chosen = replace(train, optim=replace(train.optim, lr=train.peak_lr))
    assert replace_fields(train, start_values(train, dimensions)) == chosen


def test_ranges_of_a_decade_or_more_above_zero_are_searched_in_the_logarithm():
    space = search_space(TrainConfig(), ["optim.warmup_epochs=1..9.9", "loss.box=0.07..0.7", "optim.nominal_batch=16..64"])
    assert space["optim.lr"] == Range(0.0003, 0.1, log=True, integer=False)
    assert space["augment.mixup"] == Range(0.0, 0.4, log=False, integer=False)
    assert space["optim.warmup_epochs"] == Range(1.0, 9.9, log=False, integer=False)
    assert space["loss.box"] == Range(0.07, 0.7, log=True, integer=False)
    assert space["optim.nominal_batch"] == Range(16, 64, log=False, integer=True)
    assert type(space["optim.nominal_batch"].low) is int


def test_arguments_replace_extend_and_fix_the_recipe():
    space = search_space(TrainConfig(), ["optim.lr=0.1,0.2", "network.implicit.align=none,add", "augment.degrees=0"])
    assert space["optim.lr"] == Choice((0.1, 0.2))
    assert space["network.implicit.align"] == Choice(("none", "add"))
    assert space["augment.degrees"] == Choice((0.0,))
    assert len(space) == len(RECIPE) + 1


def test_the_recipe_is_searched_around_the_runs_own_values():
    train = replace_fields(TrainConfig(), {"optim.lr": 0.5, "augment.flip_vertical": 0.25, "optim.weight_decay": 0.0})
    space = search_space(train, [])
    assert space["optim.lr"] == Range(0.0003, 0.5, log=True, integer=False)
    assert space["augment.flip_vertical"] == Choice((0.0, 0.5, 0.25))
    assert space["optim.weight_decay"] == Range(0.0, 0.001, log=False, integer=False)


def test_a_search_starts_as_near_to_the_run_as_the_arguments_allow():
    arguments = ["optim.lr=0.02..0.1", "optim.momentum=0.1..0.2", "loss.box=0.05..0.1", "augment.degrees=3", "network.stem=csp,conv"]
    start = start_values(TrainConfig(), search_space(TrainConfig(), arguments))
    expected = {"optim.lr": 0.02, "optim.momentum": 0.2, "loss.box": 0.05, "augment.degrees": 3.0, "network.stem": "conv"}
    assert {name: start[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optim.lr=0.1..0.01", "expected a low end under the high end"),
        ("optim.lr=0.1..0.1", "expected a low end under the high end"),
        ("optim.lr=-1..0.1", "optim.lr: found -1.0, expected 0 or more"),
        ("optim.lr=0.1..", "optim.lr: found '', expected a finite number"),
        ("optim.batch=8..16.5", "optim.batch: found '16.5', expected a whole number"),
        ("network.stem=conv..csp", "network.stem: found 'conv..csp', expected one of"),
        ("augment.scale=0..1", "augment.scale: found 1.0, expected 0 or more and under 1"),
        ("optim.epochs=10,20", "set --optim.epochs"),
        ("run.seed=1,2", "noise"),
        ("cluster.compute_threads=1,2", "the trained network does not depend on it"),
    ],
)
def test_a_search_refuses_arguments_that_it_cannot_vary(argument, message):
    with pytest.raises(ConfigError) as refusal:
        search_space(TrainConfig(), [argument])
    assert message in str(refusal.value)


def test_dots_in_text_are_no_range():
    assert ablation_choices(TrainConfig(), ["optim.pretrained=../a,../b"]) == {"optim.pretrained": ("../a", "../b")}


def test_old_names_are_accepted_with_a_warning_that_has_the_new_name(caplog):
    assert ablation_choices(TrainConfig(), ["optim.final_lr=0.1,0.2"]) == {"optim.final_lr_ratio": (0.1, 0.2)}
    assert search_space(TrainConfig(), ["loss.classes=0.1..0.2"])["loss.cls"] == Range(0.1, 0.2, log=False, integer=False)
    assert "event=setting_renamed old=optim.final_lr new=optim.final_lr_ratio " in caplog.text
    assert "event=setting_renamed old=loss.classes new=loss.cls " in caplog.text


def test_the_old_name_of_a_setting_that_no_study_varies_is_refused_like_the_new_one():
    with pytest.raises(ConfigError, match="the trained network does not depend on it"):
        ablation_choices(TrainConfig(), ["data.threads=1,2"])


@pytest.mark.parametrize("arguments", [["loss.classes=0.1,0.2", "loss.cls=0.3,0.4"], ["loss.cls=0.3,0.4", "loss.classes=0.1,0.2"]])
def test_the_old_and_the_new_name_at_once_are_refused(arguments):
    with pytest.raises(ConfigError, match=r"^loss\.cls: found a value for its old name loss\.classes, too, expected one of the two names$"):
        ablation_choices(TrainConfig(), arguments)

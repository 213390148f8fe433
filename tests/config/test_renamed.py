"""Names of version 0.1: every one is translated to a name that exists, with a warning."""

import pytest

from yolor_ray import config
from yolor_ray.config import renamed, study
from yolor_ray.config.benchmark import BENCHMARKS
from yolor_ray.config.dotted import SETTING_TYPES
from yolor_ray.errors import ConfigError

CONFIGS = {
    "benchmark": tuple(BENCHMARKS.values()),
    "evaluate": (config.EvaluateConfig,),
    "export": (config.ExportConfig,),
    "serve": (config.ServeConfig,),
    "tune": (study.AblationConfig, study.SearchConfig, study.TasksConfig),
}


@pytest.mark.parametrize(("old", "new"), renamed.SETTINGS.items())
def test_a_renamed_setting_exists_under_its_new_name_only(old, new):
    assert new in SETTING_TYPES
    assert old not in SETTING_TYPES


@pytest.mark.parametrize(("job", "old", "new"), [(job, *names) for job, flags in renamed.FLAGS.items() for names in flags.items()])
def test_a_renamed_flag_exists_under_its_new_name_only(job, old, new):
    fields = [owner.__dataclass_fields__ for owner in CONFIGS[job]]
    assert any(new in names for names in fields)
    assert not any(old in names for names in fields)


def test_current_names_are_unchanged_and_log_nothing(caplog):
    settings = {"optim.lr": 0.1, "loss.cls": 0.3}
    assert renamed.current_settings(settings) == settings
    assert renamed.current_arguments("train", ["csp", "--optim.lr", "0.1"]) == ["csp", "--optim.lr", "0.1"]
    assert not caplog.records


def test_an_old_setting_keeps_its_value_and_warns(caplog):
    assert renamed.current_settings({"augment.plain_epochs": 5, "train.data.threads": 2}) == {
        "augment.close_mosaic_epochs": 5,
        "train.data.decode_threads": 2,
    }
    assert "event=setting_renamed old=augment.plain_epochs new=augment.close_mosaic_epochs advice=" in caplog.text
    assert "event=setting_renamed old=data.threads new=data.decode_threads advice=" in caplog.text


def test_a_setting_under_both_names_is_refused():
    with pytest.raises(ConfigError, match=r"^loss\.cls: found a value for its old name loss\.classes, too, expected one of the two names$"):
        renamed.current_settings({"loss.cls": 0.3, "loss.classes": 0.3})


@pytest.mark.parametrize(
    ("job", "argument", "current"),
    [
        ("train", "--loss.classes", "--loss.cls"),
        ("train", "--run.validate-every=3", "--run.validate_epochs=3"),
        ("train", "--cluster.allow_open", "--cluster.allow_unauthenticated"),
        ("train", "--cluster.no-allow_open", "--cluster.no-allow_unauthenticated"),
        ("evaluate", "--kind=segm", "--iou_type=segm"),
        ("serve", "--threads", "--compute_threads"),
    ],
)
def test_an_old_flag_becomes_the_new_one_with_a_warning(job, argument, current, caplog):
    assert renamed.current_arguments(job, [argument]) == [current]
    assert "event=flag_renamed old=--" in caplog.text


def test_an_old_flag_of_another_job_is_no_old_name(caplog):
    assert renamed.current_arguments("train", ["--kind", "segm"]) == ["--kind", "segm"]
    assert not caplog.records


def test_old_keys_of_attempts_and_metrics_are_translated():
    assert renamed.current_record({"life": 2, "token": "a", "step": 7}) == {"attempt": 2, "fencing_token": "a", "step": 7}
    assert renamed.current_metrics({"classes": 0.1, "lr": 0.01}) == {"cls": 0.1, "lr": 0.01}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--loss.classes", "1", "--loss.cls", "2"],
        ["--loss.cls=2", "--loss.classes=1"],
        ["--cluster.allow-open", "--cluster.no-allow_unauthenticated"],
    ],
)
def test_a_flag_under_both_names_is_refused(arguments):
    with pytest.raises(ConfigError, match=r"found a value for its old name .*, too, expected one of the two names"):
        renamed.current_arguments("train", arguments)


def test_a_flag_may_be_repeated_under_its_new_name():
    arguments = ["--search", "loss.classes=1,2", "--search", "optim.lr=1,2", "--optim.lr", "-1"]
    assert renamed.current_arguments("tune", arguments) == arguments

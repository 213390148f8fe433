"""Settings by dotted name: every one can be parsed and replaced by name, and an invalid value is refused with the name."""

import dataclasses
import json
import math
from dataclasses import replace

import pytest

from yolor_ray.config import AugmentConfig, OptimConfig, TrainConfig
from yolor_ray.config.dotted import flatten, from_json, parse_value, replace_fields
from yolor_ray.config.presets import PRESETS
from yolor_ray.errors import ConfigError

NAMES = flatten(dataclasses.asdict(TrainConfig()))


def to_file(config: TrainConfig) -> bytes:
    return json.dumps(dataclasses.asdict(config)).encode()


def test_dotted_names_join_the_names_of_nested_settings():
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": (3, 4)}}}) == {"a": 1, "b.c": 2, "b.d.e": (3, 4)}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_read_from_its_file_is_equal(name):
    assert from_json("file", to_file(PRESETS[name])) == PRESETS[name]


def test_one_preset_becomes_another_when_all_settings_are_replaced():
    assert replace_fields(PRESETS["demo"], flatten(dataclasses.asdict(PRESETS["v4-p7"]))) == PRESETS["v4-p7"]


def test_only_the_named_settings_change():
    changed = replace_fields(TrainConfig(), {"optim.lr": 0.02, "augment.mixup": 0.5, "network.implicit.align": "none"})
    assert changed.optim == OptimConfig(lr=0.02)
    assert changed.augment == AugmentConfig(mixup=0.5)
    assert changed.network.implicit == replace(TrainConfig().network.implicit, align="none")
    assert (changed.data, changed.loss, changed.cluster, changed.run) == (
        TrainConfig().data,
        TrainConfig().loss,
        TrainConfig().cluster,
        TrainConfig().run,
    )


def test_values_that_are_only_valid_together_are_set_together():
    smaller = {"network.widths": [8, 8, 8, 8], "network.depths": (1, 1, 1, 1), "network.stem": "reorg"}
    assert replace_fields(TrainConfig(), smaller).network.widths == (8, 8, 8, 8)
    with pytest.raises(ConfigError, match=r"network\.widths: found \(8, 8, 8, 8\), expected 5 numbers"):
        replace_fields(TrainConfig(), {"network.widths": [8, 8, 8, 8]})


def test_a_whole_number_becomes_the_float_of_its_setting():
    assert type(replace_fields(TrainConfig(), {"augment.degrees": 5}).augment.degrees) is float


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("optim.epoch", "optim.epochs"),
        ("lr", "optim.lr"),
        ("align", "network.implicit.align"),
        ("xyzzy", "a flag of"),
    ],
)
def test_an_unknown_name_is_refused_with_similar_names(name, similar):
    with pytest.raises(ConfigError) as refusal:
        replace_fields(TrainConfig(), {name: 1})
    assert str(refusal.value).startswith(f"{name}: found no setting of that name, expected ")
    assert similar in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("optim.epochs", "3", "a whole number"),
        ("optim.epochs", 3.0, "a whole number"),
        ("optim.epochs", True, "a whole number"),
        ("optim.lr", True, "a finite number"),
        ("optim.lr", math.inf, "a finite number"),
        ("optim.lr", math.nan, "a finite number"),
        ("optim.lr", 10**400, "a finite number"),
        ("optim.lr", None, "a finite number"),
        ("cluster.gpu", 1, "true or false"),
        ("run.name", 7, "text"),
        ("network.widths", [8, 8.5], "whole numbers"),
        ("network.widths", 8, "whole numbers"),
        ("network.stem", "stone", "one of conv, csp, reorg, s2d, dwt"),
        ("network.stem", ["conv"], "one of conv, csp, reorg, s2d, dwt"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name, value, expected):
    with pytest.raises(ConfigError) as refusal:
        replace_fields(TrainConfig(), {name: value})
    message = str(refusal.value)
    assert message.startswith(f"{name}: found ")
    assert message.endswith(f", expected {expected}")


def test_a_value_out_of_range_is_refused_as_on_the_command_line():
    with pytest.raises(ConfigError, match=r"^optim\.epochs: found 0, expected 1 or more$"):
        replace_fields(TrainConfig(), {"optim.epochs": 0})


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_can_be_parsed_from_text(name):
    value = NAMES[name]
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    parsed = parse_value(name, text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("optim.lr", "1e-2", 0.01), ("optim.batch", "8", 8), ("cluster.gpu", "true", True), ("network.depths", "1 2 2 1", (1, 2, 2, 1))],
)
def test_text_is_parsed_by_the_type_of_the_setting(name, text, value):
    assert parse_value(name, text) == value


@pytest.mark.parametrize(
    ("name", "text"), [("optim.lr", "fast"), ("optim.batch", "8.0"), ("optim.batch", ""), ("cluster.gpu", "yes"), ("network.depths", "1 b")]
)
def test_text_that_cannot_be_parsed_is_refused_unchanged(name, text):
    with pytest.raises(ConfigError, match=rf"{name}: found '{text}', expected "):
        parse_value(name, text)


def test_settings_that_an_older_file_lacks_have_their_defaults():
    assert from_json("file", b'{"optim": {"lr": 0.5}, "run": {"name": "old"}}') == replace_fields(
        TrainConfig(), {"optim.lr": 0.5, "run.name": "old"}
    )


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "found list, expected the settings of a run by name"),
        (b'{"optim": {"lrr": 1}}', "optim.lrr: found no setting of that name, expected optim.lr"),
        (b'{"optim": 3}', "optim: found no setting of that name"),
        (b'{"optim": {"lr": {"peak": 1}}}', "optim.lr.peak: found no setting of that name"),
        (b'{"optim": {"lr": "fast"}}', "optim.lr: found 'fast', expected a finite number"),
        (b'{"optim": {"lr": NaN}}', "optim.lr: found nan, expected a finite number"),
        (b'{"optim": {"lr": -1}}', "optim.lr: found -1.0, expected 0 or more"),
    ],
)
def test_an_invalid_file_is_refused_with_its_url(data, fault):
    with pytest.raises(ConfigError) as refusal:
        from_json("s3://bucket/preset.json", data)
    assert str(refusal.value).startswith(f"s3://bucket/preset.json: {fault}")


def test_old_names_in_a_file_are_accepted_with_a_warning_that_has_the_new_name(caplog):
    config = from_json("file", b'{"loss": {"classes": 0.4}, "optim": {"final_lr": 0.1, "lr": 0.5}}')
    assert config == replace_fields(TrainConfig(), {"loss.cls": 0.4, "optim.final_lr_ratio": 0.1, "optim.lr": 0.5})
    assert "event=setting_renamed old=loss.classes new=loss.cls " in caplog.text
    assert "event=setting_renamed old=optim.final_lr new=optim.final_lr_ratio " in caplog.text
    assert len(caplog.records) == 2


def test_a_file_with_the_old_and_the_new_name_of_a_setting_is_refused():
    message = r"^file: loss\.cls: found a value for its old name loss\.classes, too, expected one of the two names$"
    for section in (b'{"classes": 0.4, "cls": 0.4}', b'{"cls": 0.4, "classes": 0.4}'):
        with pytest.raises(ConfigError, match=message):
            from_json("file", b'{"loss": ' + section + b"}")

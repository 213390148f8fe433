"""Parse the arguments of `--search` into the dimensions of a study, and define the default search space.

`NAME=VALUE,VALUE` is a choice and `NAME=LOW..HIGH` a range; names are the flags of `jobs/train.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolor_ray.config.dotted import field_type, flatten, parse_value, replace_fields
from yolor_ray.config.renamed import current_settings
from yolor_ray.config.train import TrainConfig
from yolor_ray.errors import ConfigError, check

RECIPE = (
    "optim.lr=3e-4..1e-1",
    "optim.weight_decay=1e-5..1e-3",
    "optim.momentum=0.8..0.98",
    "optim.final_lr_ratio=0.01..0.5",
    "loss.box=0.02..0.2",
    "loss.objectness=0.2..2",
    "loss.cls=0.1..1",
    "loss.anchor_ratio=2..8",
    "network.anchors_per_level=2,3,4",
    "augment.scale=0..0.9",
    "augment.translate=0..0.4",
    "augment.mosaic=0..1",
    "augment.mixup=0..0.4",
    "augment.degrees=0..15",
    "augment.hue=0..0.1",
    "augment.saturation=0..0.9",
    "augment.value=0..0.9",
    "augment.flip_vertical=0,0.5",
)
"""Default dimensions of a search: wide ranges around the published recipe."""

REFUSED = {
    "run.seed": "a seed is noise and no setting; an ablation repeats each trial with --seeds",
    "run.": "the trained network does not depend on it",
    "cluster.": "the trained network does not depend on it",
    "data.decode_threads": "the trained network does not depend on it",
    "data.val": "trials are compared on the same images",
    "data.hold_out": "trials are compared on the same images",
    "data.allow_shared_images": "the trained network does not depend on it",
}
"""Reasons against the settings that no study varies, by the start of the name."""
REFUSED_IN_ABLATIONS = REFUSED | {
    "network.implicit.": "the variants define it: use --variants",
    "optim.patience": "the trials of a comparison train equal epochs",
}
REFUSED_IN_SEARCHES = REFUSED | {
    "data.train": "a search optimises the recipe for one training set: set --data.train",
    "optim.pretrained": "a search optimises the recipe for one set of initial weights: set --optim.pretrained",
    "optim.epochs": "trials are compared and stopped at the same epochs: set --optim.epochs",
    "optim.patience": "it saves time, and the best of more epochs is never worse: set --optim.patience",
}

DECADE = 9.999
"""Factor of 10, less a tolerance for rounding."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    log: bool
    """Whether values are drawn uniformly in the logarithm: for ranges above 0 that span a decade or more."""
    integer: bool


@dataclass(frozen=True)
class Choice:
    """Values to choose from; a single value is fixed."""

    values: tuple[Any, ...]


def ablation_choices(train: TrainConfig, arguments: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Return the values of each further dimension of an ablation by name.

    Raises:
        ConfigError: an argument is no choice of two values or more, an ablation sets the name itself, or `train` refuses a value.

    """
    choices: dict[str, tuple[Any, ...]] = {}
    for name, text in _parse_arguments(arguments, REFUSED_IN_ABLATIONS).items():
        dimension = _parse_dimension(name, text)
        if isinstance(dimension, Range):
            raise ConfigError(f"search: found the range {name}={text}, expected values, such as {name}={text.replace('..', ',')}")
        check(len(dimension.values) > 1, "search", f"{name}={text}", f"two values or more; one value is set by --{name}")
        choices[name] = dimension.values
        _check_values(train, name, dimension.values)
    return choices


def search_space(train: TrainConfig, arguments: Sequence[str]) -> dict[str, Choice | Range]:
    """Return the dimensions of a search by name: those of the arguments, and of RECIPE widened to include the values of `train`.

    Raises:
        ConfigError: an argument is no choice or range, the setting cannot be searched, or `train` refuses a value.

    """
    given = _parse_arguments(arguments, REFUSED_IN_SEARCHES)
    start = _run_values(train)
    # Pretrained weights fit only their own number of anchors.
    recipe = [argument for argument in RECIPE if not (train.optim.pretrained and argument.startswith("network."))]
    space = {name: _widen_to(start[name], name, _parse_dimension(name, text)) for name, text in _parse_arguments(recipe, {}).items()}
    space |= {name: _parse_dimension(name, text) for name, text in given.items()}
    for name, dimension in space.items():
        _check_values(train, name, dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high))
    return space


def _run_values(train: TrainConfig) -> dict[str, Any]:
    """Return the settings of a run by dotted name, with a number for the automatic learning rate."""
    return flatten(dataclasses.asdict(train)) | {"optim.lr": train.peak_lr}


def _check_values(train: TrainConfig, name: str, values: Sequence[Any]) -> None:
    for value in values:
        replace_fields(train, {name: value})


def start_values(train: TrainConfig, dimensions: Mapping[str, Choice | Range]) -> dict[str, Any]:
    """Return the start values of a search: the run's own values, or the nearest values that the dimensions allow."""
    settings = _run_values(train)
    return {name: _clamp(settings[name], dimension) for name, dimension in dimensions.items()}


def _clamp(value: Any, dimension: Choice | Range) -> Any:
    if isinstance(dimension, Choice):
        return value if value in dimension.values else dimension.values[0]
    return min(max(value, dimension.low), dimension.high)


def _parse_arguments(arguments: Sequence[str], refused: Mapping[str, str]) -> dict[str, str]:
    """Return the text after `NAME=` of each argument by dotted name; old names are accepted with a warning."""
    typed: dict[str, str] = {}
    for argument in arguments:
        name, separator, text = argument.partition("=")
        check(separator == "=", "search", argument, "NAME=VALUE,VALUE or NAME=LOW..HIGH")
        check(name not in typed, "search", argument, f"{name} once")
        typed[name] = text
    texts = current_settings(typed)
    for name, text in texts.items():
        field_type(name)
        reason = next((reason for start, reason in refused.items() if name.startswith(start)), "")
        if reason:
            raise ConfigError(f"search: found '{name}={text}', but {reason}")
    return texts


def _parse_dimension(name: str, text: str) -> Choice | Range:
    low, dots, high = text.partition("..")
    if dots and field_type(name) in (int, float):
        return _range(name, parse_value(name, low), parse_value(name, high))
    values = tuple(parse_value(name, value) for value in text.split(","))
    check(len(set(values)) == len(values), "search", f"{name}={text}", "each value once")
    return Choice(values)


def _range(name: str, low: float, high: float) -> Range:
    check(low < high, "search", f"{name}={low}..{high}", "a low end under the high end")
    return Range(low, high, low > 0 and high / low > DECADE, field_type(name) is int)


def _widen_to(value: Any, name: str, dimension: Choice | Range) -> Choice | Range:
    """Return the dimension with the value included, so that one trial can be the preset itself."""
    if isinstance(dimension, Choice):
        return dimension if value in dimension.values else Choice((*dimension.values, value))
    return _range(name, min(dimension.low, value), max(dimension.high, value))

"""Say what a study varies: the words of `--search`, and the recipe that a hyper-parameter search varies by default.

`NAME=VALUE,VALUE` is a choice and `NAME=LOW..HIGH` a range; names are the flags of `jobs/train.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolor_ray.config.dotted import field_type, flatten, parse_value, replace_fields
from yolor_ray.config.train import TrainConfig
from yolor_ray.errors import ConfigError, check

RECIPE = (
    "optim.lr=1e-3..1e-1",
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
"""What a search varies unless it is told otherwise: around the published recipe, as wide as it may help."""

REFUSED = {
    "run.seed": "a seed is noise and no setting; an ablation repeats everything with --seeds",
    "run.": "it does not change what is learned",
    "cluster.": "it does not change what is learned",
    "data.decode_threads": "it does not change what is learned",
    "data.val": "trials are compared on the same images",
}
"""What no study varies, by the start of the name, and why."""
REFUSED_IN_ABLATIONS = REFUSED | {"network.implicit.": "that is what the variants say: use --variants"}
REFUSED_IN_SEARCHES = REFUSED | {
    "data.train": "a search looks for the recipe of one training set: set --data.train",
    "optim.pretrained": "a search looks for the recipe of one start: set --optim.pretrained",
    "optim.epochs": "trials are compared and stopped at the same epochs: set --optim.epochs",
}

DECADE = 9.999
"""Ten times, but for rounding."""


@dataclass(frozen=True)
class Range:
    """Every number from low to high, both included."""

    low: float
    high: float
    log: bool
    """Whether to draw the logarithm: the range is above 0 and spans a decade or more."""
    integer: bool


@dataclass(frozen=True)
class Choice:
    """One of some values; a single one is fixed."""

    values: tuple[Any, ...]


def ablation_choices(train: TrainConfig, words: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Return the values of each further dimension of an ablation by name.

    Raises:
        ConfigError: a word is no choice of two values or more, an ablation sets the name itself, or a value cannot train.

    """
    found: dict[str, tuple[Any, ...]] = {}
    for name, text in _texts(words, REFUSED_IN_ABLATIONS).items():
        dimension = _dimension(name, text)
        if isinstance(dimension, Range):
            raise ConfigError(f"search: found the range {name}={text}, expected values, such as {name}={text.replace('..', ',')}")
        check(len(dimension.values) > 1, "search", f"{name}={text}", f"two values or more; one value is set by --{name}")
        found[name] = dimension.values
        _check_values(train, name, dimension.values)
    return found


def search_space(train: TrainConfig, words: Sequence[str]) -> dict[str, Choice | Range]:
    """Return what a search varies by name: the recipe, where `words` say nothing else, around the values of `train`.

    Raises:
        ConfigError: a word is no choice or range, the name is none that can be searched, or a value cannot train.

    """
    given = _texts(words, REFUSED_IN_SEARCHES)
    start = flatten(dataclasses.asdict(train))
    # Pretrained weights are those of as many anchors.
    recipe = [word for word in RECIPE if not (train.optim.pretrained and word.startswith("network."))]
    found = {name: _around(name, _dimension(name, text), start[name]) for name, text in _texts(recipe, {}).items()}
    found |= {name: _dimension(name, text) for name, text in given.items()}
    for name, dimension in found.items():
        _check_values(train, name, dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high))
    return found


def _check_values(train: TrainConfig, name: str, values: Sequence[Any]) -> None:
    for value in values:
        replace_fields(train, {name: value})


def start_values(train: TrainConfig, dimensions: Mapping[str, Choice | Range]) -> dict[str, Any]:
    """Return where a search starts: at the run's own values, or as near to them as the dimensions allow."""
    own = flatten(dataclasses.asdict(train))
    return {name: _nearest(dimension, own[name]) for name, dimension in dimensions.items()}


def _nearest(dimension: Choice | Range, value: Any) -> Any:
    if isinstance(dimension, Choice):
        return value if value in dimension.values else dimension.values[0]
    return min(max(value, dimension.low), dimension.high)


def _texts(words: Sequence[str], refused: Mapping[str, str]) -> dict[str, str]:
    """Return what was typed for each name."""
    found: dict[str, str] = {}
    for word in words:
        name, separator, text = word.partition("=")
        check(separator == "=", "search", word, "NAME=VALUE,VALUE or NAME=LOW..HIGH")
        field_type(name)
        check(name not in found, "search", word, f"{name} once")
        reason = next((why for start, why in refused.items() if name.startswith(start)), "")
        if reason:
            raise ConfigError(f"search: found {word!r}, but {reason}")
        found[name] = text
    return found


def _dimension(name: str, text: str) -> Choice | Range:
    low, dots, high = text.partition("..")
    if dots and field_type(name) in (int, float):
        return _range(name, parse_value(name, low), parse_value(name, high))
    values = tuple(parse_value(name, part) for part in text.split(","))
    check(len(set(values)) == len(values), "search", f"{name}={text}", "each value once")
    return Choice(values)


def _range(name: str, low: float, high: float) -> Range:
    check(low < high, "search", f"{name}={low}..{high}", "a low end under the high end")
    return Range(low, high, low > 0 and high / low > DECADE, field_type(name) is int)


def _around(name: str, dimension: Choice | Range, start: Any) -> Choice | Range:
    """Return the dimension with the start value inside, so that one trial can be the preset itself."""
    if isinstance(dimension, Choice):
        return dimension if start in dimension.values else Choice((*dimension.values, start))
    return _range(name, min(dimension.low, start), max(dimension.high, start))

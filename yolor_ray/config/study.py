"""Define the knobs of studies: several trainings that Ray Tune runs beside each other. The subcommand names the study."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from yolor_ray.config import ImplicitConfig, RunConfig, TrainConfig
from yolor_ray.config.presets import PLAIN
from yolor_ray.config.search_space import ablation_choices, search_space
from yolor_ray.config.variants import BASELINE, VARIANTS
from yolor_ray.errors import check

if TYPE_CHECKING:
    VariantName = str
else:
    VariantName = Literal[tuple(VARIANTS)]

SearchArguments = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True)
class AblationConfig:
    """Train every form of implicit knowledge alike, over several seeds, and compare each with the baseline without any."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The run that all trials vary: a preset, with the flags of `jobs/train.py`; run.name names the study."""
    variants: tuple[VariantName, ...] = tuple(VARIANTS)
    """Forms of implicit knowledge; the baseline is always among them."""
    seeds: int = 3
    """Repeats of each, with run.seed and the numbers after it; 1 or more, and 2 or more to know the noise. More may be added later."""
    search: SearchArguments = ()
    """One more dimension, such as `optim.lr=1e-2,2e-2`; may be given several times. Each combination has a baseline of its own."""
    max_concurrent_trials: int = 0
    """Most trials at a time; 0 takes as many as the cluster has room for at the start."""

    def __post_init__(self) -> None:
        """Check ranges and that the further dimensions exist."""
        _check_free(self.train)
        implicit = "the study's own: --variants says which implicit knowledge is trained"
        check(self.train.network.implicit == PLAIN, "network.implicit", self.train.network.implicit, implicit)
        check(self.seeds >= 1, "seeds", self.seeds, "1 or more")
        check(self.max_concurrent_trials >= 0, "max_concurrent_trials", self.max_concurrent_trials, "0 or more")
        check(len(set(self.variants)) == len(self.variants), "variants", self.variants, "each name once")
        ablation_choices(self.train, self.search)

    @property
    def compared(self) -> tuple[str, ...]:
        """The variants, the baseline first."""
        return (BASELINE, *(name for name in self.variants if name != BASELINE))


@dataclass(frozen=True)
class SearchConfig:
    """Look for the settings of the recipe that give the highest AP, with Optuna; bad trials are stopped early."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The run that all trials vary: a preset, with the flags of `jobs/train.py`; run.name names the study."""
    trials: int = 30
    """Trainings in all, 1 or more; more may be added later."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """What stops trials: `asha` keeps the best third at 1/9 and 1/3 of the epochs, `median` stops what is under the others' median."""
    search: SearchArguments = ()
    """Further or other dimensions: a range `optim.lr=1e-3..1e-1`, a choice `optim.batch=8,16`, or one value, which is then fixed."""
    max_concurrent_trials: int = 0
    """Most trials at a time; 0 takes as many as the cluster has room for at the start."""

    def __post_init__(self) -> None:
        """Check ranges and the search space."""
        _check_free(self.train)
        check(self.trials >= 1, "trials", self.trials, "1 or more")
        check(self.max_concurrent_trials >= 0, "max_concurrent_trials", self.max_concurrent_trials, "0 or more")
        search_space(self.train, self.search)


@dataclass(frozen=True)
class TasksConfig:
    """Train each task alone, all tasks together, and all together with implicit knowledge, and compare them: the paper's table 3."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The run that all trials vary: a preset, with the flags of `jobs/train.py`; run.name names the study. network.tasks are the tasks,
    or if it names detect alone, all that both data sets are annotated for; network.implicit is the implicit knowledge that is tried."""
    seeds: int = 3
    """Repeats of each, with run.seed and the numbers after it; 1 or more, and 2 or more to know the noise. More may be added later."""
    max_concurrent_trials: int = 0
    """Most trials at a time; 0 takes as many as the cluster has room for at the start."""

    def __post_init__(self) -> None:
        """Check ranges and that there is implicit knowledge to try."""
        _check_free(self.train)
        implicit = "some: one form has it, and the others have none"
        check(self.train.network.implicit != PLAIN, "network.implicit", self.train.network.implicit, implicit)
        check(self.seeds >= 1, "seeds", self.seeds, "1 or more")
        check(self.max_concurrent_trials >= 0, "max_concurrent_trials", self.max_concurrent_trials, "0 or more")


def _check_free(train: TrainConfig) -> None:
    expected = f"{RunConfig.validate_epochs}: a study says itself when its trials are validated"
    check(train.run.validate_epochs == RunConfig.validate_epochs, "run.validate_epochs", train.run.validate_epochs, expected)


def _of_preset(kind: str, preset: TrainConfig) -> TrainConfig:
    """Return a preset as what a study varies, named after the study."""
    return replace(preset, run=replace(preset.run, name=kind, validate_epochs=RunConfig.validate_epochs))


def _ablation(preset: TrainConfig) -> AblationConfig:
    train = _of_preset("ablation", preset)
    return AblationConfig(train=replace(train, network=replace(train.network, implicit=PLAIN)))


def _tasks(preset: TrainConfig) -> TasksConfig:
    train = _of_preset("tasks", preset)
    # A preset without implicit knowledge would leave nothing to try.
    implicit = ImplicitConfig() if train.network.implicit == PLAIN else train.network.implicit
    return TasksConfig(train=replace(train, network=replace(train.network, implicit=implicit)))


STUDIES: dict[str, Callable[[TrainConfig], AblationConfig | SearchConfig | TasksConfig]] = {
    "ablation": _ablation,
    "search": lambda preset: SearchConfig(train=_of_preset("search", preset)),
    "tasks": _tasks,
}
"""Make a study of a preset."""
STUDY_DESCRIPTIONS = {
    "ablation": "Which implicit knowledge helps on this data: every form, several seeds, differences with error bars.",
    "search": "Which recipe suits this data: learning rate, loss gains, augmentation, anchors; ends in a preset file.",
    "tasks": "Which tasks gain by being learned together: each alone, all jointly, and jointly with implicit knowledge, several seeds.",
}

"""Define the settings of studies: several trainings that Ray Tune runs side by side. The subcommand names the study."""

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
    """Comparison of each variant of implicit knowledge with the baseline without any, over several seeds."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The run that all trials vary: a preset, with the flags of `jobs/train.py`; run.name names the study."""
    variants: tuple[VariantName, ...] = tuple(VARIANTS)
    """Variants of implicit knowledge; the baseline is always added."""
    seeds: int = 3
    """Repeats, with run.seed and the seeds after it; 1 or more, and 2 or more to measure the noise. A later larger number
    adds repeats."""
    search: SearchArguments = ()
    """A further dimension, such as `optim.lr=1e-2,2e-2`; may be given several times. Each combination has its own baseline."""
    max_concurrent_trials: int = 0
    """Most trials at a time; 0 takes as many as the cluster can schedule at the start."""

    def __post_init__(self) -> None:
        """Check ranges and the further dimensions."""
        _check_validation_default(self.train)
        _check_equal_epochs(self.train)
        expected = "none: --variants defines the implicit knowledge of the trials"
        check(self.train.network.implicit == PLAIN, "network.implicit", self.train.network.implicit, expected)
        check(self.seeds >= 1, "seeds", self.seeds, "1 or more")
        check(self.max_concurrent_trials >= 0, "max_concurrent_trials", self.max_concurrent_trials, "0 or more")
        check(len(set(self.variants)) == len(self.variants), "variants", self.variants, "each name once")
        ablation_choices(self.train, self.search)
        if self.variants != tuple(VARIANTS):
            for name in self.variants:
                check(self._has_head_of(name), "variants", name, f"a variant without anchors, as network.head is {self.train.network.head}")

    def _has_head_of(self, variant: str) -> bool:
        return self.train.network.head == "anchors" or not VARIANTS[variant].implicit.needs_anchors

    @property
    def variants_with_baseline(self) -> tuple[str, ...]:
        """The variants to train, the baseline first; a head without anchors has no variants that need anchors."""
        return (BASELINE, *(name for name in self.variants if name != BASELINE and self._has_head_of(name)))


@dataclass(frozen=True)
class SearchConfig:
    """Search for the settings with the highest AP, with Optuna; bad trials are stopped early."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The run that all trials vary: a preset, with the flags of `jobs/train.py`; run.name names the study."""
    trials: int = 30
    """Number of trials, 1 or more; a later larger number adds trials."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """Rule that stops trials: `asha` keeps the best third at 1/9 and 1/3 of the epochs, `median` stops trials under the others' median."""
    search: SearchArguments = ()
    """Further or replaced dimensions: a range `optim.lr=1e-3..1e-1`, a choice `optim.batch=8,16`, or one fixed value."""
    max_concurrent_trials: int = 0
    """Most trials at a time; 0 takes as many as the cluster can schedule at the start."""

    def __post_init__(self) -> None:
        """Check ranges and the search space."""
        _check_validation_default(self.train)
        check(self.trials >= 1, "trials", self.trials, "1 or more")
        check(self.max_concurrent_trials >= 0, "max_concurrent_trials", self.max_concurrent_trials, "0 or more")
        search_space(self.train, self.search)


@dataclass(frozen=True)
class TasksConfig:
    """Comparison of each task alone, all tasks together, and all tasks together with implicit knowledge: the paper's table 3."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The run that all trials vary: a preset, with the flags of `jobs/train.py`; run.name names the study. network.tasks are the tasks to
    compare; detect alone stands for all tasks that both datasets are annotated for. network.implicit is the implicit knowledge to test."""
    seeds: int = 3
    """Repeats, with run.seed and the seeds after it; 1 or more, and 2 or more to measure the noise. A later larger number
    adds repeats."""
    max_concurrent_trials: int = 0
    """Most trials at a time; 0 takes as many as the cluster can schedule at the start."""

    def __post_init__(self) -> None:
        """Check ranges, and that there is implicit knowledge to test."""
        _check_validation_default(self.train)
        _check_equal_epochs(self.train)
        expected = "some: one arm of the study has it, and the others have none"
        check(self.train.network.implicit != PLAIN, "network.implicit", self.train.network.implicit, expected)
        check(self.seeds >= 1, "seeds", self.seeds, "1 or more")
        check(self.max_concurrent_trials >= 0, "max_concurrent_trials", self.max_concurrent_trials, "0 or more")


def _check_validation_default(train: TrainConfig) -> None:
    expected = f"{RunConfig.validate_epochs}: a study sets the validation epochs of its trials itself"
    check(train.run.validate_epochs == RunConfig.validate_epochs, "run.validate_epochs", train.run.validate_epochs, expected)


def _check_equal_epochs(train: TrainConfig) -> None:
    check(train.optim.patience == 0, "optim.patience", train.optim.patience, "0: the trials of a comparison train equal epochs")


def _base_run(study: str, preset: TrainConfig) -> TrainConfig:
    """Return a preset as the base run of a study, with the name of the study."""
    return replace(preset, run=replace(preset.run, name=study, validate_epochs=RunConfig.validate_epochs))


def _without_patience(train: TrainConfig) -> TrainConfig:
    return replace(train, optim=replace(train.optim, patience=0))


def _make_ablation(preset: TrainConfig) -> AblationConfig:
    train = _without_patience(_base_run("ablation", preset))
    return AblationConfig(train=replace(train, network=replace(train.network, implicit=PLAIN)))


def _make_tasks(preset: TrainConfig) -> TasksConfig:
    train = _without_patience(_base_run("tasks", preset))
    # A preset without implicit knowledge leaves nothing to compare.
    implicit = ImplicitConfig() if train.network.implicit == PLAIN else train.network.implicit
    return TasksConfig(train=replace(train, network=replace(train.network, implicit=implicit)))


STUDIES: dict[str, Callable[[TrainConfig], AblationConfig | SearchConfig | TasksConfig]] = {
    "ablation": _make_ablation,
    "search": lambda preset: SearchConfig(train=_base_run("search", preset)),
    "tasks": _make_tasks,
}
"""Factories of the studies' configurations from a preset, by the name of the study."""
STUDY_DESCRIPTIONS = {
    "ablation": "Compare the variants of implicit knowledge on this data: several seeds, differences with error bars.",
    "search": "Search the best recipe for this data: learning rate, loss gains, augmentation, anchors; writes a preset file.",
    "tasks": "Compare joint training of tasks: each task alone, all jointly, and jointly with implicit knowledge; several seeds.",
}

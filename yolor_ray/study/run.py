"""Run a study: an ablation, a search or a comparison of tasks."""

from collections.abc import Callable
from typing import Any

from yolor_ray.config.study import AblationConfig, SearchConfig, TasksConfig
from yolor_ray.study.ablation.run import ablation
from yolor_ray.study.search.run import search
from yolor_ray.study.tasks.run import tasks_study

STUDIES: dict[type, Callable[[Any], dict[str, Any]]] = {AblationConfig: ablation, SearchConfig: search, TasksConfig: tasks_study}


def tune(study: AblationConfig | SearchConfig | TasksConfig) -> dict[str, Any]:
    """Do the study, or go on with the one of that name, and return where its report is and what is best."""
    return STUDIES[type(study)](study)

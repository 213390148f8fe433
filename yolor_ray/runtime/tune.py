"""Run a study: an ablation, a search or a comparison of tasks."""

from collections.abc import Callable
from typing import Any

from yolor_ray.config_tune import Ablation, Search, Tasks
from yolor_ray.runtime.ablation import ablation
from yolor_ray.runtime.search import search
from yolor_ray.runtime.tasks_study import tasks_study

STUDIES: dict[type, Callable[[Any], dict[str, Any]]] = {Ablation: ablation, Search: search, Tasks: tasks_study}


def tune(study: Ablation | Search | Tasks) -> dict[str, Any]:
    """Do the study, or go on with the one of that name, and return where its report is and what is best."""
    return STUDIES[type(study)](study)

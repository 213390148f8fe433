"""Run a study: an ablation or a search."""

from collections.abc import Callable
from typing import Any

from yolor_ray.config_tune import Ablation, Search
from yolor_ray.runtime.ablation import ablation
from yolor_ray.runtime.search import search

STUDIES: dict[type, Callable[[Any], dict[str, Any]]] = {Ablation: ablation, Search: search}


def tune(study: Ablation | Search) -> dict[str, Any]:
    """Do the study, or go on with the one of that name, and return where its report is and what is best."""
    return STUDIES[type(study)](study)

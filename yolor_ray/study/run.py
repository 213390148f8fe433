"""Run a study: an ablation, a hyper-parameter search, or a comparison of tasks. The type of the configuration selects the study."""

from collections.abc import Callable
from typing import Any

from yolor_ray.config.study import AblationConfig, SearchConfig, TasksConfig
from yolor_ray.io import storage
from yolor_ray.study.ablation.run import run_ablation
from yolor_ray.study.search.run import run_search
from yolor_ray.study.tasks.run import run_tasks
from yolor_ray.study.workspace import has_trained, study_folder
from yolor_ray.train.run import prepare
from yolor_ray.train.settings_lock import STUDY_FILE, freed_on_failure

STUDY_RUNNERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    AblationConfig: run_ablation,
    SearchConfig: run_search,
    TasksConfig: run_tasks,
}


def tune(study: AblationConfig | SearchConfig | TasksConfig) -> dict[str, Any]:
    """Run a study, or resume the study of that name; return `report`, `best`, `study` and the numbers of trials."""
    folder = study_folder(study.train)
    if not storage.exists(storage.join(folder, STUDY_FILE)):
        # A mistake that would fail every trial is found before the first one.
        prepare(study.train, folder)
    with freed_on_failure(folder, (STUDY_FILE,), lambda: has_trained(folder)):
        return STUDY_RUNNERS[type(study)](study)

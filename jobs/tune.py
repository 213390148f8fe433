"""Compare trainings: `python jobs/tune.py ablation [PRESET] --data.train URL --data.val URL`.

`search` looks for a better recipe, and `tasks` compares tasks learned alone with tasks learned together.
"""

from yolor_ray.command import run_study
from yolor_ray.config_tune import STUDIES, STUDY_DESCRIPTIONS
from yolor_ray.presets import PRESETS

if __name__ == "__main__":
    run_study(STUDIES, STUDY_DESCRIPTIONS, PRESETS, "nano", "yolor_ray.runtime.tune:tune")

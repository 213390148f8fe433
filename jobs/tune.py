"""Compare trainings: `python jobs/tune.py ablation [PRESET] --data.train URL --data.val URL`.

`search` looks for a better recipe, and `tasks` compares tasks learned alone with tasks learned together.
"""

from yolor_ray.cli import run_study
from yolor_ray.config.presets import PRESETS
from yolor_ray.config.study import STUDIES, STUDY_DESCRIPTIONS

if __name__ == "__main__":
    run_study(STUDIES, STUDY_DESCRIPTIONS, PRESETS, "nano", "yolor_ray.study.run:tune")

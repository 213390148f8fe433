"""Train a network: `python jobs/train.py PRESET --data.train URL --data.val URL`, or `--preset-file URL`; `demo` needs nothing at all."""

from yolor_ray.cli import run_train
from yolor_ray.config.presets import DESCRIPTIONS, PRESETS

if __name__ == "__main__":
    run_train(PRESETS, DESCRIPTIONS, "yolor_ray.train.run:train")

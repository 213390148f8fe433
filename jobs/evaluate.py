"""Measure COCO numbers: `python jobs/evaluate.py --weights URL --data URL`, or of files by `--truth FILE --results FILE`."""

from yolor_ray import command, config

if __name__ == "__main__":
    command.run(config.Evaluate, "yolor_ray.runtime.evaluate:evaluate")

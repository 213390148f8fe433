"""Measure COCO numbers: `python jobs/evaluate.py --weights URL --data URL`, or of files by `--truth FILE --results FILE`."""

from yolor_ray import cli, config

if __name__ == "__main__":
    cli.run(config.EvaluateConfig, "yolor_ray.evaluate.run:evaluate")

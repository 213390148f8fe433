"""Pack annotated images into shards: `python jobs/pack.py voc|coco|yolo|crops|scenes --help`."""

from yolor_ray import cli, config

if __name__ == "__main__":
    cli.run(config.AnyPackConfig, "yolor_ray.pack.run:pack")

"""Pack annotated images into shards: `python jobs/pack.py voc|coco|yolo|crops|scenes --help`."""

from yolor_ray import command, config

if __name__ == "__main__":
    command.run(config.Pack, "yolor_ray.runtime.pack:pack")

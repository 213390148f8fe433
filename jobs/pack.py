"""Pack a data set into Parquet shards: `python jobs/pack.py voc|coco|yolo|scenes … --output URL`; `--help` lists every flag."""

from yolor_ray import command, config_pack

if __name__ == "__main__":
    command.run(config_pack.Pack, "yolor_ray.runtime.pack:pack")

"""Fold and export weights: `python jobs/export.py --weights URL --format safetensors|onnx|openvino --output URL`."""

from yolor_ray import command, config

if __name__ == "__main__":
    command.run(config.Export, "yolor_ray.runtime.export:export")

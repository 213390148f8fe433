"""Fold and export weights: `python jobs/export.py --weights URL --format safetensors|onnx|openvino --output URL`."""

from yolor_ray import cli, config

if __name__ == "__main__":
    cli.run(config.ExportConfig, "yolor_ray.export.run:export")

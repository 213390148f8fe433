"""Engines of a network: torch, ONNX Runtime and OpenVINO, each as a function from images to decoded predictions."""

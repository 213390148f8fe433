"""Weights and images to detections: engines, engine choice, non-maximum suppression, postprocessing, parity and timing."""

"""Comparison of two weights on one dataset: differences with intervals, and the images that changed most."""

"""Optimizer, schedule of the learning rate, gradient clipping and weight average."""

"""Datasets of a run: opened, held out, and checked before training."""

"""Heads: one file per task, all built from prediction levels on the neck's feature maps."""

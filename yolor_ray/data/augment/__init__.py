"""Tiles, and the training samples that random transforms make of them."""

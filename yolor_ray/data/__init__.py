"""Datasets and training data: records, shards, decoding, augmentation and loading. Imports NumPy and pyarrow, never torch or ray."""

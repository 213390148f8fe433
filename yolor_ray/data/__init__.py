"""Data: annotations, records, shards, decoding and augmentation. Needs NumPy and pyarrow, never torch or ray."""

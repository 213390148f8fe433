"""Check annotated images and pack them into the Parquet shards of a dataset."""

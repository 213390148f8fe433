"""Datasets as Parquet shards: records, tables, shard files, manifests and unions."""

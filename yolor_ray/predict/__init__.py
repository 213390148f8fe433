"""Predict whole folders, lists, packed datasets and videos: images in, Parquet files, COCO JSON and drawn pictures out."""

"""Read, write and publish files at s3:// URLs and local paths."""

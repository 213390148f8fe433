"""Import of upstream checkpoints, the files that the authors of YOLOR published: bytes -> tensors in file order -> our network."""

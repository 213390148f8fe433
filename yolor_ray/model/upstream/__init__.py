"""Import published checkpoints: bytes of a file -> tensors in its order -> the network of ours that they are."""

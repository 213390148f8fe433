"""Training: one loop for a single process and for any number of workers, with crash-safe checkpoints and restarts."""

"""State of a run in storage: checkpoints, and the attempts that write them."""

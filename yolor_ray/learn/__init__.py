"""Learning: assignment, losses, optimisation and the training step. Needs torch alone."""

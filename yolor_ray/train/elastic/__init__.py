"""Training on the workers of a Ray cluster whose nodes come and go."""

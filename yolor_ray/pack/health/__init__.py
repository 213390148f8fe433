"""Report the health of a packed dataset: measure its images and objects, find what spoils a training, and draw examples on one page."""

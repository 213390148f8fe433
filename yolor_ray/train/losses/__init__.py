"""Losses: the assignment of boxes to cells and anchors, one file per task, and the sum over the tasks in `total`."""

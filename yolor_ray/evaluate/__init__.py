"""Evaluation: predictions and truths to COCO numbers and pictures."""

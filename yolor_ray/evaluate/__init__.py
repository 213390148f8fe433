"""Evaluation of weights on packed datasets: metrics of every task, detections and example images."""

"""Log the epochs of a run with TensorBoard, MLflow and W&B."""

"""The built-in dataset of drawn scenes."""

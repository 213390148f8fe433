"""Train, evaluate and serve unified YOLOR networks on Ray."""

__version__ = "0.1.0"

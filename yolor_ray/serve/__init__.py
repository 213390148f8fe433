"""Serving over HTTP on Ray Serve."""

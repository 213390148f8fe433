"""Serve weights over HTTP on Ray Serve, on one machine or on the replicas of a cluster."""

"""Bring new versions of the weights to the requests of a running replica: compare, give a share of the requests, accept or reject."""

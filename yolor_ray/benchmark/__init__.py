"""Benchmarks for the user's own machine or cluster; one file per benchmark."""

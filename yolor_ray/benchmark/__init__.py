"""Benchmarks that users run on their own machine or cluster; one file per benchmark."""

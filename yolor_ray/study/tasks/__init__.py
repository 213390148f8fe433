"""The comparison of tasks learned alone and jointly: its trials, its statistics and its report."""

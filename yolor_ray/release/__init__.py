"""Release weights as a new version to running services, and go back to the version before."""

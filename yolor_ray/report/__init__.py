"""Write numbers as files: Markdown, CSV, JSON and plots, and the provenance of measurements."""

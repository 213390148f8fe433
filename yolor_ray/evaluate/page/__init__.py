"""Page of an evaluation: one self-contained HTML file with numbers, curves, errors and images."""

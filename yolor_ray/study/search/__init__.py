"""The hyper-parameter search: its trials, its report and the preset of its best trial."""

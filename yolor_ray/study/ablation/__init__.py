"""The ablation of implicit knowledge: its trials, its statistics and its report."""

"""Diagnosis of an evaluation: kinds of errors, confusions, calibration, suspected label errors, and the images behind them."""

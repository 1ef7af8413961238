"""Scores -> figures: equal error rate, curve, costs, calibration, their intervals and averages."""

"""The figures of scores: equal error rate, curve, costs, calibration, their intervals and averages."""

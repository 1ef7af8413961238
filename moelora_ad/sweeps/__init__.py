"""Grids of training runs over systems and seeds, on this machine or on a cluster."""

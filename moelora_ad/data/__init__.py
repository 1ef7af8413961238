"""Trials -> batches of waveforms."""

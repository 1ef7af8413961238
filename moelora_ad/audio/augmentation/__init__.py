"""Augmentations of training waveforms: RawBoost, codecs, noise, rooms, and compositions of them."""

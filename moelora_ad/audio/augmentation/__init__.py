"""What training does to waveforms: RawBoost, codecs, noise, rooms, and how they are composed."""

"""Speech encoders: waveforms in, hidden states out."""

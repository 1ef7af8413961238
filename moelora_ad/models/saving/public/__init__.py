"""The community's published checkpoints, read as detectors or encoders of ours; nothing in them is executed."""

"""Detectors as folders, ONNX files and checkpoints: written, read and checked."""

"""Verbs that make and change saved models."""

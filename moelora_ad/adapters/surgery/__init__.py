"""Experts added, dropped, split, silenced and frozen; updates merged into weights; starts from trained LoRAs."""

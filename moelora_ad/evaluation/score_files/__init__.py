"""The files that scores are exchanged in, and the keys that give them labels."""

"""YAML <-> objects, and what differs between two configurations."""

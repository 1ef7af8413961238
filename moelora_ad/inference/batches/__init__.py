"""From files to full batches and back: decoded here or by workers, scored together, returned in their order."""

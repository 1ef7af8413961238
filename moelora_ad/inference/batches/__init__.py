"""From files to full batches and back: decoded here or by workers, scored together, given out in their order."""

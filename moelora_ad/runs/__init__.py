"""What a run keeps on disk: its folder, record, scores and failures. Written and read here, without torch."""

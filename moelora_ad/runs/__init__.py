"""What a run stores on disk: its folder, record, scores and failures. Written and read here, without torch."""

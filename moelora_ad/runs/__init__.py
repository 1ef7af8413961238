"""The files of a run (its folder, record, scores and failures), written and read without torch."""

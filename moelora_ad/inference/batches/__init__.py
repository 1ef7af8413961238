"""Full batches of windows from many files, decoded here or by workers, and their scores sorted back to the files."""

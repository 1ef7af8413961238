"""Every verb of the command line, one file each, as a function ``run(argv) -> int``."""

"""Every command of the command line, one file each, as a function ``run(argv) -> int``."""

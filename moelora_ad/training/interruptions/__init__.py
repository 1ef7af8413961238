"""What ends a run from outside, and what is said of it: signals, a lack of memory, lost processes, full disks."""

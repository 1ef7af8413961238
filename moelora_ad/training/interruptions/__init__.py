"""What may end a run from outside, and how it is reported: signals, a lack of memory, lost processes, full disks."""

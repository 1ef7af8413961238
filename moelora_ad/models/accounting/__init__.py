"""What a detector costs: parameters, operations, memory, files."""

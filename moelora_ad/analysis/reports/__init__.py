"""Tables, rows, JSON and figures of the analyses."""

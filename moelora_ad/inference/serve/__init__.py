"""An HTTP server for a detector, with a page for people and an API for programs."""

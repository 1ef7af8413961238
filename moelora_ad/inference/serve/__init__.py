"""A detector behind HTTP: a page for people, an API for programs."""

"""The names that audio files go by; apart from `audio`, so that lists of files need no decoder."""

AUDIO_SUFFIXES = (
    ".aac",
    ".aif",
    ".aiff",
    ".au",
    ".flac",
    ".m4a",
    ".mp3",
    ".mp4",
    ".oga",
    ".ogg",
    ".opus",
    ".w64",
    ".wav",
    ".webm",
    ".wma",
)
"""Endings of audio files' names, in lower case."""

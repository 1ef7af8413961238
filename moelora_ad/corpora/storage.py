"""Where a corpus lies: the only place that joins and looks up paths."""

import os
import os.path
from pathlib import Path

from moelora_ad.corpora.records import ProtocolError

AUDIO_SUFFIXES = (".aac", ".flac", ".m4a", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".wav", ".webm", ".wma")


def located(path: str | Path) -> Path:
    """A path from a configuration, with ``~`` made the home folder."""
    return Path(os.path.expanduser(path))


def joined(folder: str | Path, name: str) -> str:
    """The place of a file in a folder; ``name`` may have slashes, or be absolute."""
    return os.path.join(located(folder), name)


def first_of(root: str | Path, names: tuple[str, ...], hint: str) -> Path:
    """The first of some files or folders that is there.

    Raises:
        ProtocolError: None of them is; the message has ``hint``.
    """
    for name in names:
        if (path := located(root) / name).exists():
            return path
    looked = f"{names[0]} is not there" if len(names) == 1 else f"neither {' nor '.join(names)} is there"
    raise ProtocolError.at(root, f"{looked}; {hint}")


def audio_files(folder: Path) -> list[str]:
    """The audio files below a folder, known by ``AUDIO_SUFFIXES``; sorted paths relative to it, with slashes.

    Raises:
        ProtocolError: The folder cannot be read.
    """

    def refuse(reason: OSError) -> None:
        raise ProtocolError.at(folder, f"cannot be read: {reason.strerror}") from None

    found: list[str] = []
    for place, _, names in os.walk(folder, onerror=refuse, followlinks=True):
        below = Path(os.path.relpath(place, folder))
        found.extend((below / name).as_posix() for name in names if name.lower().endswith(AUDIO_SUFFIXES))
    return sorted(found)

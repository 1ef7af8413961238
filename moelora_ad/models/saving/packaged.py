"""Models that come with the package, each by its name."""

import os
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "packaged"


def packaged_models() -> dict[str, Path]:
    """The folders of the packaged models by their names, sorted by name."""
    return {path.name: path for path in sorted(FOLDER.iterdir()) if (path / "config.json").is_file()}


def found_model(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The folder of a packaged model if ``source`` is its name, and ``source`` itself if not.

    The name of a packaged model takes precedence over a folder of the same name: write ``./mini`` for the folder.
    """
    return packaged_models().get(os.fspath(source), source)

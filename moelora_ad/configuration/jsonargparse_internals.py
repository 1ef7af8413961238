"""What this package needs of jsonargparse that it has no public name for: every such use is here, each with a test."""

from collections.abc import Iterator
from contextlib import contextmanager

from jsonargparse._common import parsing_settings
from jsonargparse._util import resolved_import_paths

__all__ = ["resolved_import_paths", "settings_restored"]
# resolved_import_paths: by class, what is written in place of the shortest path that it can be imported from.


@contextmanager
def settings_restored() -> Iterator[None]:
    """After the block jsonargparse's settings are what they were: ``set_parsing_settings`` adds packages to its lists
    of what may be imported, and can take none away."""
    before = dict(parsing_settings)
    try:
        yield
    finally:
        parsing_settings.update(before)

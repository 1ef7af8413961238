"""What this package needs of jsonargparse that it has no public name for: every such use is here, each with a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import _typehints
from jsonargparse._common import parsing_settings
from jsonargparse._util import import_object, resolved_import_paths

__all__ = ["begin_anew", "resolved_import_paths", "settings_restored"]
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


def begin_anew(kind: type) -> None:
    """From now on, where a later configuration or option names another class of a kind, nothing of the earlier one's
    arguments is kept; jsonargparse keeps those that both classes have."""
    keep_common = _typehints.discard_init_args_on_class_path_change

    def discard(parser_or_action: Any, prev_val: Any, value: Any) -> None:
        if prev_val and "init_args" in prev_val and prev_val["class_path"] != value["class_path"]:
            new = import_object(value["class_path"])
            if isinstance(new, type) and issubclass(new, kind) and new is not import_object(prev_val["class_path"]):
                prev_val.pop("dict_kwargs", None)
                init_args = prev_val["init_args"]
                for name in list(init_args if isinstance(init_args, dict) else vars(init_args)):
                    init_args.pop(name)
                return
        keep_common(parser_or_action, prev_val, value)

    _typehints.discard_init_args_on_class_path_change = discard

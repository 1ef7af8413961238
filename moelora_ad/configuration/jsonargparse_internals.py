"""All uses of what has no public name in jsonargparse, each with a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import _typehints
from jsonargparse._common import parsing_settings
from jsonargparse._util import import_object, resolved_import_paths

__all__ = ["begin_anew", "parser_of", "resolved_import_paths", "settings_restored"]
# resolved_import_paths: by class, the path that is written for it instead of the shortest one it can be imported from.


@contextmanager
def settings_restored() -> Iterator[None]:
    """Restore jsonargparse's settings after the block: ``set_parsing_settings`` adds packages to its lists of what may
    be imported, and cannot remove any."""
    before = dict(parsing_settings)
    try:
        yield
    finally:
        parsing_settings.update(before)


def begin_anew(kind: type) -> None:
    """Make jsonargparse drop all arguments of a class of this kind where a later configuration or option names another
    class; it would keep the arguments that both classes have."""
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


def parser_of(command: str, parser: Any) -> Any:
    """The parser of one of the commands of a parser."""
    return parser._subcommands_action.choices[command]

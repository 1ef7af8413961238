"""Which code a configuration may call.

A configuration names classes of any package, with their arguments: building them is running code. What a user gives to
``fit`` is trusted like a script of the user's, as long as it names classes of the kind that each place wants. What came
with a run may be a stranger's: a command that only looks at it imports no package that the user has not named.
"""

import argparse
import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from moelora_ad.errors import InputError

KNOWN = (
    "moelora_ad",
    "torch.optim",
    "lightning.fabric.plugins",
    *(
        f"lightning.pytorch.{part}"
        for part in ("accelerators", "callbacks", "loggers", "plugins", "profilers", "strategies")
    ),
)
"""Packages whose classes every command may build."""
MADE_LATER = ("classifier", "optimizer", "schedule")
"""Parts of ``model`` that the configuration only names: the module calls them."""


@contextmanager
def imports_limited(allow: Collection[str] | None) -> Iterator[None]:
    """Limit what jsonargparse imports because a configuration names it.

    Args:
        allow: packages besides `KNOWN`; None for all that jsonargparse does not deny, such as ``os``.
    """
    from jsonargparse import set_parsing_settings  # here: the help of verbs has the option --allow, and no parsing
    from jsonargparse._common import parsing_settings  # which can be set by the public function, but not set back

    before = dict(parsing_settings)
    if allow is None:
        set_parsing_settings(import_path_denylist=[])  # its own list, which only warns otherwise
    else:
        set_parsing_settings(
            import_path_denylist=["*"],
            import_path_allowlist=[*KNOWN, *allow],
            instantiate_subclass_spec_in_any=False,  # where anything is expected, there is no kind to check
        )
    try:
        yield
    finally:
        parsing_settings.update(before)


def check_made_later(model: Mapping[str, object]) -> None:
    """See that the parts of ``model`` that are made later are classes.

    Raises:
        InputError: one is a function.
    """
    for name in MADE_LATER:
        if inspect.isroutine(value := model.get(name)):
            path = f"{value.__module__}.{value.__qualname__}"
            raise InputError(f"model.{name}: {path} is a function: give a class")


def add_allow(parser: argparse.ArgumentParser) -> None:
    """The option --allow of commands that look at a run."""
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        type=_package,
        metavar="PACKAGE",
        help="build classes of this package too, because you trust it; may be repeated (default: those of moelora_ad)",
    )


def _package(text: str) -> str:
    names = text.split(".")
    if not all(name.isidentifier() for name in names) or names[0] == "jsonargparse":
        raise argparse.ArgumentTypeError(f"{text!r} is no package that can be allowed")
    return text

"""Which code a configuration may call.

A configuration names classes of any package, with their arguments: building them is running code. What a user gives to
``fit`` is trusted like a script of the user's, as long as it names classes of the kind that each place expects. What
comes with a run may be somebody else's: a command that only looks at it imports no package that the user has not named.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from moelora_ad.errors import InputError

KNOWN = (
    "moelora_ad",
    "torch.optim",
    "torch.nn.CrossEntropyLoss",
    "torch.nn.MultiMarginLoss",
    "torch.nn.modules.loss",
    "lightning.fabric.plugins",
    *(
        f"lightning.pytorch.{part}"
        for part in ("accelerators", "callbacks", "loggers", "plugins", "profilers", "strategies")
    ),
)
"""Packages whose classes every command may build."""
MADE_LATER = ("classifier", "optimizer", "schedule")
"""Parts of ``model`` that are not built with the configuration, but later, by the module."""


@contextmanager
def imports_limited(allow: Collection[str] | None) -> Iterator[None]:
    """Limit what jsonargparse imports because a configuration names it.

    Args:
        allow: packages besides `KNOWN`; None for all that jsonargparse does not deny, such as ``os``.
    """
    from jsonargparse import set_parsing_settings  # here, as the help of commands needs only `add_allow`

    from moelora_ad.configuration.jsonargparse_internals import settings_restored

    with settings_restored():
        if allow is None:
            set_parsing_settings(import_path_denylist=[])  # makes jsonargparse's own list deny, instead of warn
        else:
            set_parsing_settings(
                import_path_denylist=["*"],
                import_path_allowlist=[*KNOWN, *allow],
                instantiate_subclass_spec_in_any=False,  # where anything is expected, there is no kind to check
            )
        yield


def check_made_later(model: Mapping[str, object]) -> None:
    """Check that the parts of ``model`` that are made later are classes.

    Raises:
        InputError: one is a function.
    """
    for name in MADE_LATER:
        if inspect.isroutine(value := model.get(name)):
            path = f"{value.__module__}.{value.__qualname__}"
            raise InputError(f"model.{name}: {path} is a function: give a class")


def import_from_here() -> None:
    """Let files of the current folder be imported by the installed commands as by ``python -m``, but behind all that is
    installed, so that none takes the place of a library."""
    here = os.getcwd()
    if not getattr(sys.flags, "safe_path", False) and not {"", here} & {*sys.path}:
        sys.path.append(here)


def add_allow(parser: argparse.ArgumentParser) -> None:
    """Add the option --allow of commands that read a run or a model."""
    parser.add_argument(
        "--allow",
        action=_Allow,
        default=[],
        type=_package,
        metavar="PACKAGE",
        help="build classes of this package or file of the current folder too, because you trust it; may be repeated "
        "(default: those of moelora_ad)",
    )


class _Allow(argparse.Action):
    """Stores the packages, and lets them be in the current folder, from which nothing is imported otherwise."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: object = None) -> None:
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])
        import_from_here()


def _package(text: str) -> str:
    names = text.split(".")
    if not all(name.isidentifier() for name in names) or names[0] == "jsonargparse":
        raise argparse.ArgumentTypeError(f"{text!r} is not a package that can be allowed")
    return text

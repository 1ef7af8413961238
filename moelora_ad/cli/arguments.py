"""The command lines of our own verbs."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from moelora_ad.errors import InputError

FAILED, USAGE = 1, 2
"""Exit codes: the work failed; the command line is wrong."""


class OneLineArgumentParser(argparse.ArgumentParser):
    """A mistake is one line on standard error and exit code 2; options are never abbreviated."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | arguments)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {InputError(' '.join(message.split()))}\n")


def names_configuration(arguments: Sequence[str]) -> bool:
    """Whether ``--config`` is among the arguments of fit."""
    return any(argument == "--config" or argument.startswith("--config=") for argument in arguments)

"""The parser of our own commands, and options that several of them share."""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError
from moelora_ad.evaluation.metrics.least import LEAST_RESAMPLES
from moelora_ad.models.precision_names import CHOICES

if TYPE_CHECKING:
    from moelora_ad.inference.scorer import Scorer

FAILED, USAGE = 1, 2
"""Exit codes: the work failed; the command line is wrong."""


class OneLineArgumentParser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line on standard error, with exit code 2; it abbreviates no options."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | arguments)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {InputError(' '.join(message.split()))}\n")


def names_configuration(arguments: Sequence[str]) -> bool:
    """Whether ``--config`` or ``-c`` is among the arguments of fit."""
    return any(argument in ("--config", "-c") or argument.startswith("--config=") for argument in arguments)


def new_folder(to: str) -> Path:
    """The folder that ``--to`` names, new or empty.

    Raises:
        InputError: there is a file of that name, or the folder has content.
    """
    folder = Path(to)
    if (folder.exists() or folder.is_symlink()) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"--to: {folder} already exists: give a new or empty folder")
    return folder


def check_folder(parser: argparse.ArgumentParser, option: str, folder: str | Path | None) -> None:
    """Refuse a file where an option names a folder to write to, before any work is done."""
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        parser.error(f"{option}: {folder} is not a folder")


def add_resamples(parser: Any, none: str = "") -> None:
    """Add the options of a bootstrap to a parser, or to a group of one; ``none`` says what 0 resamples mean."""
    add = parser.add_argument
    told = f"resamples of the bootstrap, {LEAST_RESAMPLES} or more (default: 1000{none})"
    add("--resamples", type=int, default=1000, metavar="N", help=told)
    add(
        "--cluster",
        type=words,
        metavar="A,B",
        help="fields whose combinations are resampled (default: speaker,attack)",
    )
    add("--seed", type=int, default=1, help="seed of the bootstrap (default: 1)")


def check_resamples(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Check the options of `add_resamples`; a mistake ends the program."""
    from moelora_ad.corpora.trial import TEXT_FIELDS

    if given.resamples < LEAST_RESAMPLES and given.resamples != 0:
        parser.error(f"--resamples: {given.resamples} is too few for an interval; give {LEAST_RESAMPLES} or more")
    if given.seed < 0:
        parser.error(f"--seed: {given.seed} is negative")
    for field in given.cluster or ():
        if field not in TEXT_FIELDS:
            parser.error(f"--cluster: no field {field!r}; choose from {', '.join(TEXT_FIELDS)}")


def words(text: str) -> tuple[str, ...]:
    """The type of an option that is a list of words with commas between them."""
    return tuple(word.strip() for word in text.split(","))


def add_scorer(parser: argparse.ArgumentParser) -> None:
    """Add the options of `scorer_of`, and those of the verdict."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="the folder of a model that was exported, the id of one on the hub, or the name of one that comes with "
        "the package (see moelora-ad models; ./NAME is a folder of that name)",
    )
    parser.add_argument("--revision", help="commit, tag or branch of the hub repository")
    parser.add_argument(
        "--backbone", metavar="DIR", help="folder of the pretrained encoder, if it is not where the model says"
    )
    parser.add_argument("--prior", type=float, default=0.5, help="how probable bona fide is beforehand (default: 0.5)")
    parser.add_argument(
        "--threshold",
        type=float,
        help="score from which on a file is bona fide (default: -logit(prior), 0 for raw scores)",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="windows at once (default: 16)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, if there is one)")
    add_precision(parser)
    add_allow(parser)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--precision`` of the commands that compute with trained models."""
    parser.add_argument(
        "--precision",
        choices=CHOICES,
        help="precision of the encoder (default: that of the model's evaluation); bf16 is bf16-mixed, and "
        "tf32 is 32-true with the faster products of GPUs since Ampere",
    )


def check_scorer(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Check the options of `add_scorer`; a value that is out of range ends the program with one line."""
    if not 0 < arguments.prior < 1:
        parser.error(f"--prior: must be above 0 and below 1, not {arguments.prior}")
    if arguments.threshold is not None and not math.isfinite(arguments.threshold):
        parser.error(f"--threshold: must be a finite number, not {arguments.threshold}")
    if arguments.batch_size < 1:
        parser.error(f"--batch-size: must be at least 1, not {arguments.batch_size}")


def scorer_of(arguments: argparse.Namespace, hop: int | None = None) -> "Scorer":
    """The scorer that the options of `add_scorer` ask for.

    Args:
        arguments: the parsed arguments.
        hop: see `Scorer`.

    Raises:
        InputError: see `Scorer.from_pretrained`.
    """
    from moelora_ad.inference.scorer import Scorer

    return Scorer.from_pretrained(
        arguments.model,
        revision=arguments.revision,
        backbone=arguments.backbone,
        hop=hop,
        batch_size=arguments.batch_size,
        device=arguments.device,
        precision=arguments.precision,
        allow=arguments.allow,
    )

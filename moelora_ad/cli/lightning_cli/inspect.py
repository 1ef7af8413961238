"""The command inspect: what the model of a configuration costs, without its weights."""

from collections.abc import Sequence

from moelora_ad.cli.arguments import OneLineArgumentParser, names_configuration
from moelora_ad.cli.imports import at_once
from moelora_ad.configuration.trust import add_allow


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code."""
    parser = OneLineArgumentParser(
        prog=f"{program} inspect",
        description=f"{__doc__} It takes --config and all other options of {program} fit, and these:",
    )
    parser.add_argument("--seconds", type=float, help="length of a clip (default: that of the training segment)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    add_allow(parser)
    own, rest = parser.parse_known_args(argv[1:])
    if not names_configuration(rest):
        parser.error("give the configuration of a training run with --config")
    if own.seconds is not None and not 0 < own.seconds < 3_600:
        parser.error(f"--seconds: must be above 0 and below 3,600, not {own.seconds:g}")
    with at_once():
        from moelora_ad.cli.lightning_cli.inspection import inspect_model

    return inspect_model(rest, own, parser.prog)

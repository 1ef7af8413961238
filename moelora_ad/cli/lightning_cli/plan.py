"""The command plan: how long a training run will take and what it needs, from a few measured steps."""

from collections.abc import Sequence

from moelora_ad.cli.arguments import OneLineArgumentParser, names_configuration
from moelora_ad.cli.imports import at_once
from moelora_ad.configuration.trust import add_allow


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code."""
    parser = OneLineArgumentParser(
        prog=f"{program} plan",
        description=f"{__doc__} It takes --config and all other options of {program} fit, and these:",
        epilog="Nothing is saved: no folder, no checkpoint, no log.",
    )
    parser.add_argument("--steps", type=int, default=8, help="steps to measure, after those of warm-up (default: 8)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    add_allow(parser)
    own, rest = parser.parse_known_args(argv[1:])
    if not names_configuration(rest):
        parser.error("give the configuration of a training run with --config")
    if own.steps < 2:
        parser.error(f"--steps is {own.steps}: give at least 2, so that their spread shows")
    with at_once():
        from moelora_ad.cli.lightning_cli.measurement import plan_run

    return plan_run(rest, own, parser.prog)

"""The command serve: a model behind a page and an API."""

import argparse
import importlib
import ipaddress
import math
import sys
from collections.abc import Sequence

from moelora_ad.cli.arguments import OneLineArgumentParser, add_scorer, check_scorer, scorer_of
from moelora_ad.cli.imports import at_once
from moelora_ad.errors import InputError

_EXTRA = ("fastapi", "uvicorn", "python_multipart")


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code when it is stopped."""
    parser = OneLineArgumentParser(
        prog=f"{program} serve",
        description="A page that scores what is dropped on it or recorded, and an API (/openapi.json describes it).",
    )
    _add_arguments(parser)
    arguments = parser.parse_args(argv[1:])
    _check(arguments, parser)
    try:
        for package in _EXTRA:
            importlib.import_module(package)
    except ImportError as error:
        parser.error(f"{error.name} is not installed: pip install 'moelora_ad[serve]'")
    with at_once():
        from moelora_ad.inference.descriptions import model_name
        from moelora_ad.inference.output import DecisionRule
        from moelora_ad.inference.serve.application import Limits, application
        from moelora_ad.inference.serve.server import listening, server

    try:
        with listening(arguments.host, arguments.port) as listener:
            scorer = scorer_of(arguments)
            decision = DecisionRule.of(scorer.calibration is not None, arguments.prior, arguments.threshold)
            limits = Limits(round(arguments.max_size * 2**20), arguments.max_seconds, arguments.queue)
            app = application(scorer, arguments.model, decision, limits)
            _tell(listener.getsockname(), model_name(arguments.model), arguments.host)
            server(app).run(sockets=[listener])
    except InputError as error:
        parser.error(str(error))
    return 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_scorer(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for a free one (default: 8000)")
    parser.add_argument(
        "--max-size", type=float, default=100.0, metavar="MIB", help="largest request, in MiB (default: 100)"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=600.0, metavar="S", help="longest sound, in seconds (default: 600)"
    )
    parser.add_argument(
        "--queue",
        type=int,
        default=32,
        metavar="N",
        help="requests that are answered or wait; further ones are refused for the moment (default: 32)",
    )


def _check(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    check_scorer(arguments, parser)
    if not 0 <= arguments.port < 2**16:
        parser.error(f"--port: must be from 0 to 65535, not {arguments.port}")
    for name in ("max_size", "max_seconds"):
        if not 0 < (value := getattr(arguments, name)) < math.inf:
            parser.error(f"--{name.replace('_', '-')}: must be above 0, not {value}")
    if arguments.queue < 1:
        parser.error(f"--queue: must be at least 1, not {arguments.queue}")


def _tell(address: tuple, name: str, host: str) -> None:
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    print(f"{name} on http://{shown}:{address[1]}/ (Ctrl-C stops)", file=sys.stderr, flush=True)
    if not ipaddress.ip_address(address[0]).is_loopback:
        told = f"note: whoever reaches {host} can use this server: it has neither user accounts nor encryption"
        print(f"{told}; a proxy in front of it may", file=sys.stderr, flush=True)

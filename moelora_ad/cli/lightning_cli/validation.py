"""Checks of configurations as fit reads them: keys, classes, arguments and values; nothing is built."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from moelora_ad.cli.lightning_cli.detection_command import DetectionCommand
from moelora_ad.configuration.packaged import configuration_file, kind
from moelora_ad.configuration.parser import OneLineParser
from moelora_ad.configuration.trust import check_made_later, imports_limited
from moelora_ad.errors import InputError
from moelora_ad.sweeps.planning import plan_runs
from moelora_ad.sweeps.sweep import read_sweep

_BASE = "paper"  # the experiment that overlays are checked on top of


class _Parser(OneLineParser):
    """Raises the errors that it would print."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise InputError((message or "").partition(": error: ")[2].strip())


class _Done(Exception):
    """Raised when everything has been checked, so that nothing is built."""


class _Checker(DetectionCommand):
    """Reads configurations as fit does.

    Args:
        cases: command lines of fit, without the command.
        allow: packages besides ours whose classes may be named; None for all.
        problems: receives what is wrong with each case that is not valid, by the case's number.
    """

    def __init__(self, cases: Sequence[Sequence[str]], allow: Collection[str] | None, problems: dict[int, str]) -> None:
        self.cases = cases
        self.allow = allow
        self.problems = problems
        super().__init__(parser_class=_Parser, args=["fit"])

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        for number, case in enumerate(self.cases):
            for one in self._parsers:
                one.files.clear()  # type: ignore[attr-defined]  # of the case before
            try:
                with imports_limited(self.allow):
                    check_made_later(parser.parse_args(["fit", *case]).fit.model)
            except InputError as error:
                self.problems[number] = str(error)
        raise _Done


def problems_of(groups: Sequence[Sequence[str]], allow: Collection[str] | None = ()) -> dict[str, str | None]:
    """What is wrong with configurations.

    Args:
        groups: groups of files or names; a group is checked together, its later configurations changing the earlier
            ones. Overlays without an experiment are checked on top of the paper's; of a sweep, every system is checked.
        allow: packages besides ours whose classes may be named; None for all.

    Returns:
        a problem, or None, by the name of what was checked.
    """
    found: dict[str, str | None] = {}
    cases: dict[str, list[str]] = {}
    for group in groups:
        name = ", ".join(group)
        try:
            cases |= _cases(group, name)
        except InputError as error:
            found[name] = str(error)
    problems: dict[int, str] = {}
    with suppress(_Done):
        _Checker([*cases.values()], allow, problems)
    return found | {name: problems.get(number) for number, name in enumerate(cases)}


def _cases(group: Sequence[str], name: str) -> dict[str, list[str]]:
    """Command lines of fit, by the name of what they check."""
    kinds = [kind(configuration_file(one)) for one in group]
    if "sweep" in kinds:
        if len(group) > 1:
            raise InputError(f"{group[kinds.index('sweep')]} is a sweep: check it on its own")
        runs = plan_runs(read_sweep(group[0]))
        return {f"{name}, system {run.system}": run.arguments()[1:] for run in runs}
    if "experiment" not in kinds:
        name, group = f"{name} (on top of {_BASE})", [_BASE, *group]
    return {name: [word for one in group for word in ("--config", one)]}

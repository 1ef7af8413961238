"""Verbs run in this process."""

import sys
from types import ModuleType

import pytest


@pytest.fixture
def run_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a verb, which may print one error line; returns its exit code, what it printed, and that line."""

    def call(module: ModuleType, *arguments: object) -> tuple[int, str, str]:
        verb = module.__name__.rpartition(".")[2].removesuffix("_command")
        monkeypatch.setattr(sys, "argv", ["moelora-ad", verb, *map(str, arguments)])
        try:
            code = module.run("moelora-ad")
        except SystemExit as exit_:
            code = exit_.code
        printed = capsys.readouterr()
        assert printed.err.count("\n") <= 1
        return code, printed.out, printed.err

    return call

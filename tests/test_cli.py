"""The door: fast answers, plain errors."""

import subprocess
import sys

import pytest

from moelora_ad.cli import VERBS, main


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["/bin/lightning", *arguments])
    return main()


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_the_verbs(monkeypatch, capsys, arguments):
    assert call(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in VERBS)
    assert "lightning fit --config experiments/quickstart.yaml" in printed


def test_version(monkeypatch, capsys):
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("moelora_ad 0.")


def test_a_mistyped_verb_gets_the_nearest_one(monkeypatch, capsys):
    assert call(monkeypatch, "fti") == 2
    assert capsys.readouterr().err == "lightning: error: no verb 'fti'; did you mean 'fit'?\n"
    assert call(monkeypatch, "zzz") == 2
    assert "choose from fit, validate, test, predict" in capsys.readouterr().err


def test_help_and_mistakes_import_nothing_heavy():
    script = "import sys; from moelora_ad.cli import main; main(); print('torch' in sys.modules)"
    for verb in ("--help", "fti"):
        done = subprocess.run([sys.executable, "-c", script, verb], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False"


def test_the_three_names_are_one_program():
    done = subprocess.run([sys.executable, "-m", "moelora_ad", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m moelora_ad VERB")

"""A verb imports only what it needs: help no package that computes, and figures of score files no torch."""

import subprocess
import sys

import pytest

from moelora_ad.cli.analyze import ANALYSES
from moelora_ad.cli.fit import FIRST
from moelora_ad.cli.main import VERBS

HEAVY = {"torch", "transformers", "lightning", "scipy", "matplotlib", "pandas", "av", "jsonargparse", "wandb"}


def run(arguments: list[str], forbidden: set[str], most: int) -> str:
    """The output of a verb in a new process that imports no ``forbidden`` package and at most ``most`` modules."""
    program = (
        "import sys\n"
        "from moelora_ad.cli.main import main\n"
        f"sys.argv = ['moelora-ad', *{arguments!r}]\n"
        "try:\n"
        "    code = main()\n"
        "except SystemExit as stop:\n"
        "    code = stop.code or 0\n"
        "assert code == 0, code\n"
        f"assert not {forbidden!r} & {{*sys.modules}}, {forbidden!r} & {{*sys.modules}}\n"
        f"assert len(sys.modules) <= {most}, len(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("verb", [*VERBS, *(f"analyze {name}" for name in ANALYSES), "corpus list", "corpus check"])
def test_help_imports_nothing_heavy(verb):
    assert run([*verb.split(), "--help"], HEAVY, most=700).startswith("usage: moelora-ad ")


def test_corpora_are_listed_without_what_computes():
    assert "FakeAVCeleb" in run(["corpus", "list"], HEAVY, most=1_000)


def test_figures_of_score_files_need_no_torch(make_scores, make_run, tmp_path):
    make_scores().write(tmp_path / "scores.csv")
    without = {"torch", "transformers", "lightning", "matplotlib", "torchmetrics"}
    assert "EER" in run(["evaluate", str(tmp_path / "scores.csv"), "--resamples", "20"], without, most=1_500)
    make_run("lora", 1)
    assert "lora" in run(["results", str(tmp_path / "runs")], without, most=1_800)


def test_no_garbage_is_looked_for_among_modules():
    program = (
        "import gc, sys\n"
        "from moelora_ad.cli.imports import at_once\n"
        "with at_once():\n"
        "    import email.mime.text\n"
        "    assert not gc.isenabled() and not gc.get_freeze_count()\n"
        "frozen = gc.get_freeze_count()\n"
        "assert gc.isenabled() and frozen > 1_000, frozen\n"
        "sys.modules['torch'] = None\n"
        "with at_once():\n"  # within a program that runs on
        "    kept = [[] for _ in range(1_000)]\n"
        "    assert gc.isenabled()\n"
        "assert gc.get_freeze_count() == frozen\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("verb", FIRST)
def test_the_short_help_names_options_that_there_are(verb, lightning):
    code, short, _ = lightning(verb, "--help")
    assert code == 0
    assert len(short.splitlines()) < 25
    assert [*lightning("fit", "--config", "x.yaml", "-h")][:2] == [*lightning("fit", "--help")][:2]
    listed = [line.split()[0] for line in short.splitlines() if line.startswith("  --")]
    assert len(listed) == 10
    code, whole, _ = lightning(verb, "--help", "all")
    assert code == 0
    assert len(whole.splitlines()) > 500
    assert [option for option in listed if f" {option} " not in whole.replace(",", " ")] == []

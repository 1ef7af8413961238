"""The program: fast answers, plain errors."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moelora_ad.cli.main import VERBS, main


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["/bin/lightning", *arguments])
    return main()


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_the_verbs(monkeypatch, capsys, arguments):
    assert call(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in VERBS)
    assert "lightning fit --config quickstart" in printed


def put_on_path(folder: Path, text: str) -> Path:
    """Writes a program called lightning into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "lightning"
    script.write_text(text)
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("folder", "text", "is_told"),
    [
        ("bin", "#!/usr/bin/python3\nfrom lightning_sdk.cli.entrypoint import main_cli\n", True),
        ("bin", "#!/bin/sh\necho something else\n", True),
        ("bin", "#!/usr/bin/python3\nfrom moelora_ad.cli.main import main\n", False),
        ("shims", '#!/usr/bin/env bash\nexec pyenv exec "${0##*/}" "$@"\n', False),
        ("bin", None, False),
    ],
)
def test_another_packages_lightning_is_told_in_one_line_of_the_help(
    monkeypatch, capsys, tmp_path, folder, text, is_told
):
    script = tmp_path / folder / "lightning" if text is None else put_on_path(tmp_path / folder, text)
    monkeypatch.setenv("PATH", str(tmp_path / folder))
    monkeypatch.setattr(sys, "argv", ["/bin/moelora-ad"])
    assert main() == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert len(notes) == is_told
    if is_told:
        assert f"note: {script} is another package's program, so write moelora-ad;" in notes[0]


def test_version(monkeypatch, capsys):
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("moelora_ad 0.")


def test_a_mistyped_verb_gets_the_nearest_one(monkeypatch, capsys):
    assert call(monkeypatch, "fti") == 2
    assert capsys.readouterr().err == "lightning: error: unknown command 'fti'; did you mean 'fit'?\n"
    assert call(monkeypatch, "zzz") == 2
    assert "choose from fit, validate, test, predict" in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "actions"), [("corpus", ["list", "check"]), ("configs", ["list", "show", "copy"])])
def test_a_verb_without_its_action_names_the_actions(monkeypatch, capsys, verb, actions):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, verb)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert all(action in line for action in actions)


def test_help_and_mistakes_import_nothing_heavy():
    script = "import sys; from moelora_ad.cli.main import main; main(); print('torch' in sys.modules)"
    for verb in ("--help", "fti"):
        done = subprocess.run([sys.executable, "-c", script, verb], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False"


def test_the_three_names_are_one_program(monkeypatch, capsys):
    done = subprocess.run([sys.executable, "-m", "moelora_ad", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m moelora_ad COMMAND")
    monkeypatch.setattr(sys, "argv", ["-m", "fit", "--trainer.epoch", "3"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("moelora_ad", run_name="__main__", alter_sys=True)  # what -m does, without another process
    assert (stop.value.code, capsys.readouterr().err.partition(": unknown")[0]) == (
        2,
        "python -m moelora_ad fit: error",
    )


# Sources of a verb's module that sends itself a signal and waits, when it runs or while it is imported.
STOPPED = "import os, time; os.kill(os.getpid(), {number}); time.sleep(60)"
AT_WORK = f"def run(argv, program):\n    {STOPPED}"
LOADING = f"try:\n    {STOPPED}\nexcept BaseException:\n    raise ImportError('half a module')"


def run_source(tmp_path: Path, source: str, ignored: int | None = None, **arguments) -> subprocess.CompletedProcess:
    """Runs the verb ``corpus`` with ``source`` as its module."""
    (tmp_path / "made.py").write_text(source)
    script = (
        f"import sys, moelora_ad.cli, moelora_ad.cli.main as cli; moelora_ad.cli.__path__.append({str(tmp_path)!r}); "
        "cli.VERBS['corpus'] = ('', 'made'); sys.argv[0] = 'moelora-ad'; sys.exit(cli.main())"
    )

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores SIGINT
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", script, "corpus"]
    return subprocess.run(command, text=True, timeout=100, preexec_fn=prepare, **(piped | arguments))


@pytest.mark.parametrize("source", [AT_WORK, LOADING], ids=["at work", "while modules are loaded"])
@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")], ids=["SIGINT", "SIGTERM"]
)
def test_a_verb_that_is_stopped_says_so_in_one_line(tmp_path, source, number, told):
    done = run_source(tmp_path, source.format(number=int(number)))
    assert (done.returncode, done.stderr) == (128 + number, f"moelora-ad corpus: {told}\n")


def test_of_several_processes_one_tells_of_a_signal(tmp_path):
    done = run_source(tmp_path, AT_WORK.format(number=int(signal.SIGTERM)), env=os.environ | {"LOCAL_RANK": "1"})
    assert (done.returncode, done.stderr) == (143, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_whoever_started_the_program_ignores_stays_ignored(tmp_path, number):
    source = (
        f"import os\nos.kill(os.getpid(), {int(number)})\n"
        f"def run(argv, program):\n    os.kill(os.getpid(), {int(number)})"
    )
    assert run_source(tmp_path, f"{source}\n    return 0", ignored=number).returncode == 0


def test_sigterm_ends_a_process_that_a_verb_has_forked_without_a_word(tmp_path):
    source = """
import os, signal, time
def run(argv, program):
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(3)
    time.sleep(0.5)  # Python drops a signal that comes while it forks
    os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
    done = run_source(tmp_path, source)
    assert (done.returncode, done.stderr) == (143, "")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("    open('/nowhere/at all', 'w')", "/nowhere/at all: No such file or directory"),
        ("    open('/nowhere/\x1b[31m', 'w')", "/nowhere/\\x1b[31m: No such file or directory"),
        ("    raise OSError(28, 'No space left on device')", "No space left on device"),
        ("    raise OSError(28, 'No space left on device', 'from', None, 'to')", "from -> to: No space left on device"),
    ],
)
def test_what_the_system_refuses_is_one_line(tmp_path, source, told):
    done = run_source(tmp_path, f"def run(argv, program):\n{source}")
    assert (done.returncode, done.stderr) == (1, f"moelora-ad corpus: error: {told}\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("ending", ["return 0", "raise SystemExit(0)"], ids=["returns", "exits, as help does"])
def test_output_that_nobody_takes_is_told_in_at_most_one_line(tmp_path, ending):
    source = f"def run(argv, program):\n    print('told')\n    {ending}"
    with open("/dev/full", "w") as full:
        done = run_source(tmp_path, source, stdout=full)
    assert (done.returncode, done.stderr) == (1, "moelora-ad corpus: error: No space left on device\n")
    read, write = os.pipe()
    os.close(read)
    done = run_source(tmp_path, source, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")

"""The program: one entry point for every command, and how all of them end when they are stopped.

Nothing heavy is imported before the command is known, so that help and a mistyped command answer at once.
"""

import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from moelora_ad import __version__
from moelora_ad.cli.arguments import FAILED, USAGE
from moelora_ad.errors import Terminated, printable

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # variables with the rank of a process, where several train together

# command -> (what it does, the module here whose function run runs it)
VERBS = {
    "fit": ("train a detector, select it on the development set and test the best checkpoint", "fit"),
    "validate": ("EER and scores of a checkpoint on the development set", "fit"),
    "test": ("EER and scores of a checkpoint on every test set", "fit"),
    "predict": ("scores only, for test sets without labels", "fit"),
    "inspect": ("parameters, operations and memory of a configuration, without weights", "lightning_cli.inspect"),
    "plan": ("time, memory and disk of a training run, from a few measured steps", "lightning_cli.plan"),
    "evaluate": ("figures, plots and a report from score files", "evaluate"),
    "results": ("systems over their seeds, from the folders of runs", "results"),
    "analyze": ("what the experts of trained models do", "analyze"),
    "score": ("scores of your own audio files", "score"),
    "models": ("the detectors that come with the package", "saved_models.models"),
    "serve": ("a page and an API that score sounds", "serve"),
    "import": ("a published model or encoder as one of ours", "saved_models.import_"),
    "extend": ("an expert for a new attack, beside those of a model", "saved_models.extend"),
    "export": ("a small model to keep, from a checkpoint", "saved_models.export"),
    "prune": ("drop the experts of a model that no set needs", "saved_models.prune"),
    "merge": ("a mixture's experts as one LoRA, where that loses little enough", "saved_models.merge"),
    "calibrate": ("make a model's scores log-likelihood ratios", "saved_models.calibrate"),
    "sweep": ("train a grid of systems and seeds, here or on a SLURM cluster", "sweep"),
    "configs": ("list, show, copy or validate the configurations that come with the package", "configs"),
    "corpus": ("list the corpora, or check those of a configuration", "corpus"),
}


def main() -> int:
    """Run the command line in ``sys.argv``; returns the exit code: 0, 1 if the work failed, 2 for a usage error, 130 if
    interrupted by Ctrl-C, 143 if ended by SIGTERM.

    What a command does not report itself is reported here in one line: an interruption (with the exception's message),
    and an `OSError`.
    """
    program = Path(sys.argv[0]).name if sys.argv[0].endswith(("lightning", "moelora-ad")) else "python -m moelora_ad"
    verb = sys.argv[1] if sys.argv[1:] and sys.argv[1] in VERBS else ""
    name = f"{program} {verb}".rstrip()
    try:
        with _signals():
            try:
                return _answer(program, sys.argv[1:])
            finally:
                sys.stdout.flush()
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        _tell_stop(name, number, *stop.args)
        return 128 + number
    except BrokenPipeError:  # the reader of our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        if error.strerror is None:  # not an error of the system, but a library's own message
            raise
        places = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        where = f"{' -> '.join(places)}: " if places else ""
        print(f"{name}: error: {printable(where + error.strerror)}", file=sys.stderr)
        return FAILED


def _answer(program: str, arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(program))
        return 0
    if arguments[0] == "--version":
        print(f"moelora_ad {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(VERBS)}"
        print(f"{program}: error: unknown command {verb!r}; {hint}", file=sys.stderr)
        return USAGE
    with _stopped_at_once(f"{program} {verb}"):
        run: Callable[[list[str], str], int] = importlib.import_module(f"moelora_ad.cli.{VERBS[verb][1]}").run
    return run(arguments, program)


@contextmanager
def _signals() -> Iterator[None]:
    """Within the block SIGTERM raises `Terminated`, unless the parent process ignores SIGTERM. SIGTERM and Ctrl-C are
    sent again if their exception was lost in code that cannot raise, such as a finaliser."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked process ends at once
            os._exit(128 + number)
        # Lightning's handler calls this one too, and ends the work itself after the present batch.
        if signal.getsignal(number) is end:
            raise Terminated

    def tell_or_repeat(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            number = signal.SIGTERM if issubclass(lost.exc_type, Terminated) else signal.SIGINT
            threading.Timer(0.01, os.kill, (process, number)).start()
        else:
            before(lost)

    if ours:
        signal.signal(signal.SIGTERM, end)
    before, sys.unraisablehook = sys.unraisablehook, tell_or_repeat
    try:
        yield
    finally:
        sys.unraisablehook = before
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _stopped_at_once(name: str) -> Iterator[None]:
    """Within the block a signal ends the process at once: half-loaded modules would raise errors of their own, and
    there is nothing to clean up yet."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        _tell_stop(name, number)
        os._exit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if callable(handler):  # a signal that is ignored stays ignored
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell_stop(name: str, number: int, *words: object) -> None:
    """Report why the program stops; of several processes, which all stop for the same reason, only the first does."""
    if next((os.environ[rank] for rank in _RANKS if rank in os.environ), "0") == "0":
        what = "terminated" if number == signal.SIGTERM else "interrupted"
        print("; ".join([f"{name}: {what}", *map(str, words)]), file=sys.stderr, flush=True)


def _help(program: str) -> str:
    verbs = "\n".join(f"  {verb:10} {what}" for verb, (what, _) in VERBS.items())
    return f"""usage: {program} COMMAND [options]

Adapt a speech foundation model to audio deepfake detection.

commands:
{verbs}

{program} COMMAND --help lists its options. Configurations compose: --config a.yaml --config b.yaml --model.x=...
first steps: {program} fit --config quickstart{_other_lightning()}"""


def _other_lightning() -> str:
    """A note if the program ``lightning`` on the PATH is another package's, such as lightning-sdk's; else empty."""
    import shutil  # it imports compression libraries, which most commands do not need

    path = shutil.which("lightning")
    if path is None or Path(path).parent.name == "shims":  # a script of pyenv or the like, which calls another program
        return ""
    try:
        with open(path, "rb") as file:
            if b"moelora_ad" in file.read(2**20):
                return ""
    except OSError:
        return ""
    return (
        f"\nnote: {printable(path)} is another package's program, so write moelora-ad; pip install --force-reinstall "
        "--no-deps of moelora_ad brings ours back"
    )

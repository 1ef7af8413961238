"""A tiny sweep whose runs can be made to die or to wait."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

# Callbacks for the training processes.
CALLBACKS = """
import os, signal, time
from pathlib import Path
from lightning.pytorch import Callback

class KillOnce(Callback):
    '''kill -9 before a step, the first time.'''

    def __init__(self, step: int, marker: str) -> None:
        self.step, self.marker = step, Path(marker)

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.step and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

class Hold(Callback):
    '''Waits before a step until it is let go.'''

    def __init__(self, step: int, reached: str, go: str) -> None:
        self.step, self.reached, self.go = step, Path(reached), Path(go)

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            self.reached.touch()
            while not self.go.exists():
                time.sleep(0.05)
"""


@pytest.fixture
def start_sweep():
    """A function that starts the verb in its own process, where Ctrl-C works even if tests run in the background."""

    def start(path: Path, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "moelora_ad", "sweep", str(path), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


@pytest.fixture
def write_sweep(tmp_path: Path, experiment: dict, write_config):
    """A function that writes a sweep over the tiny experiment, with keys added or replaced, and returns its path."""

    def write(**keys: object) -> Path:
        (tmp_path / "callbacks_of_test.py").write_text(CALLBACKS)
        del experiment["trainer"]["logger"]
        sweep = {
            "folder": str(tmp_path / "runs"),
            "configs": [str(write_config(experiment))],
            "options": {"trainer.max_epochs": 3},
            "systems": {"plain": {}},
            "seeds": [1],
            "environment": {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join([str(tmp_path), *filter(None, sys.path)])},
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(sweep | keys, sort_keys=False))
        return path

    return write


@pytest.fixture
def callback():
    """A function that returns the option of fit that adds a callback of `CALLBACKS`."""

    def option(name: str, **arguments: object) -> dict[str, object]:
        arguments = {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}
        return {"trainer.callbacks": [{"class_path": f"callbacks_of_test.{name}", "init_args": arguments}]}

    return option

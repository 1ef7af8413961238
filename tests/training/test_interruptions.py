"""Runs that are interrupted, killed or only tried: saved files are whole, and nothing is left over."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from moelora_ad import files
from moelora_ad.cli.main import _signals
from moelora_ad.errors import Terminated
from moelora_ad.training import DetectionModule
from moelora_ad.training.callbacks.checkpoints import WholeCheckpoint
from moelora_ad.training.callbacks.divergence import DivergenceError


class Interrupted(Callback):
    """Sends Ctrl-C a number of times in the third step, before the optimiser's step."""

    def __init__(self, times: int) -> None:
        self.times = times

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == 2:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_lets_the_step_end_and_a_second_one_saves_nothing(
    lightning, experiment, write_config, tmp_path, monkeypatch, times
):
    """An epoch has four steps; the saved checkpoint leads to the weights of an uninterrupted run."""
    experiment["data"]["batch_size"] = 3
    experiment["trainer"]["max_epochs"] = 1
    callback, folder = Interrupted(times), tmp_path / "runs" / "tiny" / "version_0"
    monkeypatch.setattr(DetectionModule, "configure_callbacks", lambda self: [callback])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, _, err = lightning("fit", "--config", write_config(experiment), "--test_after_fit", "false")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "Traceback" not in err
    callback.times = 0
    if times == 2:
        assert not folder.exists() or not list(folder.glob("checkpoints/*"))
        return
    saved = folder / "checkpoints" / "last-interrupted.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 3
    states = []
    for arguments in ((), ("--ckpt_path", saved)):
        arguments += ("--test_after_fit", "false", "--trainer.logger.init_args.name", f"run{len(states)}")
        assert lightning("fit", "--config", write_config(experiment), *arguments)[0] == 0
        last = folder.parents[1] / f"run{len(states)}" / "version_0" / "checkpoints" / "last.ckpt"
        states.append(torch.load(last, weights_only=True)["state_dict"])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("saved_before", ["the best one", "both"])
def test_what_was_saved_before_a_kill_in_the_same_step_is_replaced(
    lightning, experiment, write_config, tmp_path, monkeypatch, saved_before
):
    """The run is killed between the first epoch's two checkpoints or after both, and starts again without one."""
    arguments = ("--trainer.max_epochs", 1, "--test_after_fit", "false", "--trainer.logger.init_args.version", "run")
    save = WholeCheckpoint._save_last_checkpoint

    def die(self, *given):
        if saved_before == "both":
            save(self, *given)
        raise DivergenceError("after which nothing is saved")

    with monkeypatch.context() as killed:
        killed.setattr(WholeCheckpoint, "_save_last_checkpoint", die)
        assert lightning("fit", "--config", write_config(experiment), *arguments)[0] == 1
    folder = tmp_path / "runs" / "tiny" / "run" / "checkpoints"
    there = sorted(path.name for path in folder.iterdir())
    assert len(there) == (1 if saved_before == "the best one" else 2)
    assert lightning("fit", "--config", write_config(experiment), *arguments)[0] == 0
    assert sorted({*there, "last.ckpt"}) == sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("logger", [(), ("--trainer.logger", "false")])
def test_trying_one_batch_of_everything_leaves_nothing(
    lightning, experiment, write_config, tmp_path, monkeypatch, logger
):
    config = write_config(experiment)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    arguments = ("--trainer.fast_dev_run", "true", "--trainer.enable_model_summary", "true", *logger)
    code, out, err = lightning("fit", "--config", config, *arguments)
    assert code == 0, err
    assert "none: fast_dev_run saves nothing" in out
    assert list((tmp_path / "here").iterdir()) == []
    assert not (tmp_path / "runs").exists()


def test_an_evaluation_leaves_no_empty_folder_of_its_logger(lightning, experiment, write_config, tmp_path):
    """Predicted scores are not figures, so a logger gets nothing."""
    arguments = ("--untrained", "true", "--score_folder", tmp_path / "scores")
    assert lightning("predict", "--config", write_config(experiment), *arguments)[0] == 0
    assert (tmp_path / "scores" / "in_domain.csv").is_file()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_in_code_that_cannot_raise_comes_again(number, kind, capsys):
    class Finalised:
        def __del__(self):
            signal.raise_signal(number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _signals():
            made = Finalised()
            del made
            signal.sigtimedwait([], 30)
        raised = None
    except KeyboardInterrupt as stop:
        raised = type(stop)
    finally:
        signal.signal(signal.SIGINT, before)
    assert raised is kind
    assert capsys.readouterr().err == ""


# A process with a reader that is still referred to when its work ends early, as Ctrl-C may leave it.
LEFT = """
import sys
from torch.utils.data import DataLoader
from moelora_ad.data.workers import begin_worker, end_workers

left = iter(DataLoader(range(1_000), num_workers=1, worker_init_fn=begin_worker))
next(left)
left._shutdown_workers = lambda: None
end_workers()
"""


def test_no_reader_is_waited_for_at_the_end():
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.forks
def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    """Only leftovers of the same file are removed, and not while another process writes it."""
    path, other = tmp_path / "run.json", tmp_path / "other.json"
    for target in (path, other):
        if (child := os.fork()) == 0:
            with files.written_whole(target) as unfinished:
                unfinished.write_text("torn")
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 2
    with files.written_whole(path) as first:
        first.write_text("1")
        if (child := os.fork()) == 0:
            with files.written_whole(path) as second:
                second.write_text("2")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert first.read_text() == "1"
    assert path.read_text() == "1"
    (left,) = [found for found in tmp_path.iterdir() if found != path]
    with files.written_whole(other) as unfinished:
        unfinished.write_text("3")
    assert not left.exists()


def test_a_configuration_is_there_whole_or_not_at_all(lightning, experiment, write_config, tmp_path, monkeypatch):
    """The configuration is written under another name, and its final name appears only when it is whole."""
    config, seen = write_config(experiment), []
    final = tmp_path / "runs" / "tiny" / "run" / "config.yaml"
    save = LightningArgumentParser.save

    def watched(self, cfg, path, **given):
        save(self, cfg, path, **given)
        seen.append((final.exists(), str(path) == str(final)))

    monkeypatch.setattr(LightningArgumentParser, "save", watched)
    arguments = ("--trainer.max_epochs", 1, "--test_after_fit", "false", "--trainer.logger.init_args.version", "run")
    assert lightning("fit", "--config", config, *arguments)[0] == 0
    assert seen == [(False, False)]
    assert final.is_file()

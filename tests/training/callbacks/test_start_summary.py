"""Reports of a run at its start and during training, against its files, formulas and the data."""

import csv
import re
import sys

import pytest
import soundfile
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from rich import reconfigure

from moelora_ad.training.callbacks.progress import BatchLines, duration, with_progress
from moelora_ad.training.callbacks.start_summary import StartBlock, audio_seconds, with_start_block

EXPERTS = 2 * 4 * 2 * 2 * 2 * 32  # layers, projections, experts, matrices of rank 2 and width 32
GATES = 2 * 4 * 2 * 2 * 32  # layers, projections, matrices (gate and noise), experts, width
CLASSIFIER = 2 * 32 + 2


@pytest.fixture
def told(experiment):
    """The experiment, with none of its reports turned off."""
    del experiment["trainer"]["enable_progress_bar"], experiment["trainer"]["enable_model_summary"]
    return experiment


def block_of(out: str) -> dict[str, str]:
    """The lines of the start block by name."""
    return dict(re.split(r": +", line, maxsplit=1) for line in out.partition("\n\n")[0].splitlines())


def test_a_log_has_the_start_block_and_a_line_for_every_epoch(told, write_config, lightning, tmp_path):
    code, out, err = lightning("fit", "--config", write_config(told))
    assert code == 0
    assert not re.search("GPU|TPU|Tip|Seed set|Restoring|stopped", err)
    assert "\x1b" not in out + err
    assert "━━━━ " not in out + err  # no progress bar

    block = block_of(out)
    with open(tmp_path / "train.csv", newline="") as file:
        minutes = sum(soundfile.info(row["path"]).duration for row in csv.DictReader(file)) / 60
    assert block["train"] == f"train: 12 trials (6 bona fide, 6 spoof), {minutes:.1f} min"
    assert block["dev"] == "dev: 8 trials (4 bona fide, 4 spoof)"
    assert block["test"] == "in_domain (eval), out_of_domain (ood)"
    assert "MoELoRA num_experts 2 rank 2, MeanPooling" in block["model"]
    trained = EXPERTS + GATES + CLASSIFIER
    assert re.match(rf"{trained:,} of 79,042, {100 * trained / 79_042:.2f} % ", block["trainable parameters"])
    assert f"(experts {EXPERTS:,}, gates {GATES:,}, classifier {CLASSIFIER})" in block["trainable parameters"]
    assert block["batch"] == "4 trials, 1 s each"
    assert block["steps"] == "at most 6, 2 epochs of 3"  # 12 trials in batches of 4
    assert block["on"] == "cpu, precision 32-true"
    [run] = (tmp_path / "runs" / "tiny").iterdir()
    assert block["folder"] == f"{run} (seed 1)"

    [checkpoint] = run.glob("checkpoints/epoch*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    states = [saved["state_dict"], *(state for o in saved["optimizer_states"] for state in o["state"].values())]
    size = sum(tensor.nbytes for state in states for tensor in state.values())
    assert block["checkpoint"] == f"{size / 1e6:,.2f} MB with optimiser"

    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss_epoch"]) for row in rows if row["train/loss_epoch"]]
    eers = [100 * float(row["dev/eer"]) for row in rows if row["dev/eer"]]
    lines = re.findall(r"^epoch (\d)/2: loss (\S+), dev EER (\S+) % \(best (\S+) %\), .* s$", out, re.MULTILINE)
    assert lines == [
        ("1", f"{losses[0]:.3f}", f"{eers[0]:.2f}", f"{eers[0]:.2f}"),
        ("2", f"{losses[1]:.3f}", f"{eers[1]:.2f}", f"{min(eers):.2f}"),
    ]
    assert f"folder:               {run}" in out
    assert f"moelora-ad export --checkpoint {checkpoint}" in out


def test_a_run_that_goes_on_says_so_and_knows_its_best(told, write_config, lightning, tmp_path):
    told["trainer"]["max_epochs"] = 1
    config = write_config(told)
    lightning("fit", "--config", config)
    [best] = (tmp_path / "runs" / "tiny" / "version_0" / "checkpoints").glob("epoch*.ckpt")
    last = torch.load(best, weights_only=True)
    [callback] = [state for name, state in last["callbacks"].items() if "Checkpoint" in name]
    callback["best_model_score"] = torch.tensor(0.0125)  # better than any later EER
    torch.save(last, tmp_path / "last.ckpt")
    more = ("--trainer.max_epochs", "2", "--test_after_fit", "false", "--ckpt_path", tmp_path / "last.ckpt")
    same_folder = ("--trainer.logger.init_args.version", "0")
    code, out, _ = lightning("fit", "--config", config, *more, *same_folder)
    assert code == 0
    assert block_of(out)["steps"] == "at most 6, 2 epochs of 3; resumes after step 3"
    assert re.search(r"^epoch 2/2: .* \(best 1\.25 %\)", out, re.MULTILINE)
    assert "epoch 1/2:" not in out


def test_the_bar_shows_the_dev_eer(told, write_config, lightning, monkeypatch):
    terminal = {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": "100", "TERM": "xterm"}
    with monkeypatch.context() as environment:
        for name, value in terminal.items():
            environment.setenv(name, value)
        code, out, _ = lightning("fit", "--config", write_config(told))
    reconfigure()  # rich keeps a console that was made for the terminal above
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
    eer = re.search(r"epoch 1/2: loss \S+, dev EER (\S+) %", plain)[1]  # the line printed above the bar
    assert re.search(rf"epoch 2/2 ━\S* [1-3]/3 .* loss: \d\.\d+, dev EER: {eer} %", plain)
    assert re.search(r"[\r\n]train: +train: 12 trials", plain)  # the start block is on lines of its own


def test_a_log_has_a_line_from_within_epochs_and_sets(told, write_config, lightning, monkeypatch):
    monkeypatch.setattr("moelora_ad.training.callbacks.progress._SECONDS_BETWEEN", 0.0)
    code, _, err = lightning("fit", "--config", write_config(told))
    assert code == 0
    lines = [line for line in err.splitlines() if " batches" in line]
    left = r", \S+ m?s left"
    for wanted in (
        r"epoch 1/2: 1 of 3 batches(, loss \S+)?",
        rf"epoch 2/2: 2 of 3 batches, loss \d\.\d+{left}",
        r"epoch 2/2: 3 of 3 batches, loss \d\.\d+",
        r"dev: 1 of \d+ batches",
        r"in_domain: 1 of \d+ batches",  # of the test after training
    ):
        assert any(re.fullmatch(wanted, line) for line in lines), (wanted, lines)
    # A fast run prints no such lines.
    monkeypatch.setattr("moelora_ad.training.callbacks.progress._SECONDS_BETWEEN", 30.0)
    assert " batches" not in lightning("fit", "--config", write_config(told))[2]


def test_effective_batch(told, write_config, lightning):
    options = ("--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "-1", "--trainer.max_steps", "3")
    code, out, _ = lightning("fit", "--config", write_config(told), *options, "--test_after_fit", "false")
    assert code == 0
    assert block_of(out)["batch"] == "8 trials, 1 s each: 4 x 2 batches accumulated"
    assert block_of(out)["steps"] == "at most 3, 2 an epoch"


def test_what_the_user_chose_stays():
    for chosen in (
        {"enable_progress_bar": False},
        {"callbacks": [TQDMProgressBar()]},
        {"callbacks": TQDMProgressBar()},
    ):
        assert with_progress(chosen, lines=True) is chosen
    for chosen in ({"enable_model_summary": False}, {"callbacks": [ModelSummary()]}):
        assert with_start_block(chosen) is chosen
    own = Callback()
    ours = with_start_block({"callbacks": own})
    assert [type(callback) for callback in ours["callbacks"]] == [StartBlock, Callback]
    assert ours["enable_model_summary"] is False


def test_evaluation_tells_no_epochs(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    found = with_progress({"callbacks": None}, lines=False)
    assert [type(callback) for callback in found["callbacks"]] == [BatchLines]
    assert found["enable_progress_bar"] is False


def test_length_of_a_corpus_is_not_looked_up_where_that_takes_long(data):
    module = data()
    module.setup("fit")
    columns = module.train_trials
    assert audio_seconds(columns) == pytest.approx(sum(soundfile.info(trial.audio).duration for trial in columns))
    assert audio_seconds([type("Trial", (), {"audio": "far.zip!/a.flac"})] * 3) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0423, "0.042 s"),
        (4.94, "4.9 s"),
        (41.3, "41 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (3_600, "1 h"),
        (7_512, "2 h 5 min"),
        (3 * 86_400 + 4 * 3_600 + 59, "3 d 4 h"),
    ],
)
def test_duration(seconds, words):
    assert duration(seconds) == words

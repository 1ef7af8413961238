"""fit and test from the command line: figures, files, and one clear line for every mistake."""

import csv
import importlib.util
import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from moelora_ad.evaluation import ScoreTable
from moelora_ad.runs.record import read_record
from moelora_ad.training import DetectionModule

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def error_line(printed: str) -> str:
    """The one error line on standard error; a traceback fails the test."""
    assert "Traceback" not in printed, printed
    lines = [line for line in printed.splitlines() if "error:" in line]
    assert len(lines) == 1, printed
    return lines[0]


def scores_of(run: Path) -> Path:
    """The folder of scores of the only checkpoint of a run that was evaluated."""
    return next((run / "scores").glob("epoch*"))


def test_an_attack_held_out(lightning, experiment, write_config, tmp_path, caplog):
    given = ("--data.held_out_attack", "A05", "--data.train.init_args.exclude_attacks", "[A04]")
    code, out, err = lightning("fit", "--config", write_config(experiment), *given)
    assert code == 0, err
    told = "train, exclude_attacks A04; without A05: 9 trials remain (6 bona fide, 3 spoof), 3 are left out (0 "
    assert told in caplog.text
    run = tmp_path / "runs" / "tiny" / "version_0"
    rows = [row for path in (tmp_path / "dev.csv",) for row in csv.DictReader(path.open(newline=""))]
    scored = {name: ScoreTable.read(scores_of(run) / f"{name}.csv") for name in ("dev", "held_out", "in_domain")}
    attacks = {name: [trial.attack for trial in table.trials if trial.label == 0] for name, table in scored.items()}
    assert attacks["held_out"] == ["A05"]
    assert sorted(attacks["dev"]) == sorted(row["attack"] for row in rows if row["attack"] not in ("", "A05"))
    record = json.loads((run / "run.json").read_text())
    assert record["selections"].keys() == {"train", "dev", "held_out"}
    assert record["selections"]["train"] == "exclude_attacks A04; without A05"
    assert (record["sets"]["held_out"]["num_bona_fide"], record["sets"]["held_out"]["num_spoof"]) == (2, 1)
    provenance = json.loads((scores_of(run) / "held_out.json").read_text())
    assert provenance["corpus"]["selection"].startswith("A05 against bona fide trials")
    assert provenance["configuration"]["data"]["held_out_attack"] == "A05"
    # Resuming with all attacks would be another training.
    files = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    code, _, err = lightning(
        "fit", "--config", run / "config.yaml", "--data.held_out_attack", "null", "--ckpt_path", "last"
    )
    assert code != 0
    assert "resumes the same training, but the checkpoint was trained on train (9 trials)" in error_line(err)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == files  # the run is as it was
    code, out, err = lightning("results", run)
    assert code == 0, err
    assert "(set held_out: development's)" in out


def test_fit_then_test_from_what_fit_prints(lightning, experiment, write_config, tmp_path):
    code, out, _ = lightning("fit", "--config", write_config(experiment), "--trainer.max_epochs", 1)
    assert code == 0
    assert "dev (selects the checkpoint)" in out
    run = tmp_path / "runs" / "tiny" / "version_0"
    scores = scores_of(run)
    names = {"dev", "in_domain", "out_of_domain"}
    assert {path.name for path in scores.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("csv", "json")}
    assert (run / "checkpoints" / "last.ckpt").is_file()
    torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    test, evaluate, export = (line.split(":")[1].split() for line in out.splitlines() if line.startswith("next:"))
    assert Path(evaluate.pop()).resolve() == scores.resolve()
    assert evaluate == ["moelora-ad", "evaluate"]
    assert export[:2] == ["moelora-ad", "export"]
    first = {path.name: path.read_bytes() for path in scores.iterdir()}
    told = json.loads(first["out_of_domain.json"])
    assert told["configuration"]["model"]["adaptation"]["init_args"]["num_experts"] == 2
    assert told["configuration"]["data"]["test"]["out_of_domain"] == experiment["data"]["test"]["out_of_domain"]
    assert (told["seed"], told["trials"], told["complete"]) == (1, 6, True)
    code, out, _ = lightning(*test[1:])
    assert code == 0
    # Nothing is computed again unless another folder is given for the scores.
    assert "8 of in_domain, scored by an earlier run" in out
    assert {path.name: path.read_bytes() for path in scores.iterdir()} == first
    code, out, _ = lightning(*test[1:], "--score_folder", tmp_path / "again")
    assert code == 0
    assert "earlier run" not in out
    assert (tmp_path / "again" / "in_domain.csv").read_bytes() == first["in_domain.csv"]
    table = ScoreTable.read(tmp_path / "again" / "in_domain.csv")
    assert f"{100 * table.equal_error_rate().eer:.2f}" in out


def test_configurations_compose_and_the_command_line_wins(lightning, experiment, write_config):
    lora = {"model": {"adaptation": {"class_path": "moelora_ad.adapters.LoRA", "init_args": {"rank": 4}}}}
    code, out, _ = lightning(
        *("fit", "--config", write_config(experiment), "--config", write_config(lora, "lora.yaml")),
        *("--model.adaptation.init_args.alpha", 8, "--seed_everything", 5, "--print_config"),
    )
    assert code == 0
    shown = yaml.safe_load(out)
    assert shown["model"]["adaptation"]["class_path"] == "moelora_ad.adapters.LoRA"
    assert shown["model"]["adaptation"]["init_args"]["rank"] == 4
    assert shown["model"]["adaptation"]["init_args"]["alpha"] == 8
    assert shown["seed_everything"] == 5
    assert shown["data"]["batch_size"] == 4


def test_predict_scores_without_labels(lightning, experiment, write_config, tmp_path):
    manifest = Path(experiment["data"]["test"]["in_domain"]["init_args"]["path"])
    rows = [row[:2] for row in csv.reader(manifest.open())]
    manifest.write_text("".join(",".join(row) + "\n" for row in rows))
    code, _, _ = lightning("predict", "--config", write_config(experiment), "--untrained", "true")
    assert code == 0
    table = ScoreTable.read(tmp_path / "runs" / "tiny" / "version_0" / "scores" / "untrained" / "in_domain.csv")
    assert len(table) == 8
    assert set(table.labels) == {-1}


def test_joined_corpora_and_excerpts_by_class_path(lightning, experiment, write_config, tmp_path):
    data = experiment["data"]
    data["train"] = {"one": data["train"], "two": data["val"]}
    data |= {"train_weights": {"one": 1, "two": 2.5}, "class_balanced": True, "eval_batch_size": 1}
    data["eval_segment"] = {"class_path": "moelora_ad.audio.FullUtterance", "init_args": {"longest": 320_000}}
    data["train_segment"] = {"class_path": "moelora_ad.audio.Crops", "init_args": {"count": 2, "samples": 4_000}}
    code, out, _ = lightning("fit", "--config", write_config(experiment), "--trainer.max_epochs", 1)
    assert code == 0
    assert "epochs:               1 (5 steps)" in out  # 20 draws in batches of 4


def test_files_that_cannot_be_read_are_counted_and_make_the_exit_code_1(lightning, experiment, write_config, tmp_path):
    """1 of 12 files in training and, in the test sets, 1 of 8 and all 6 cannot be read; everything else is done."""
    train, some, all_of_it = (
        Path(corpus["init_args"]["path"])
        for corpus in (experiment["data"]["train"], *experiment["data"]["test"].values())
    )
    for manifest, count in ((train, 1), (some, 1), (all_of_it, 6)):
        manifest.write_text(manifest.read_text().replace(".flac", ".nowhere.flac", count))
    experiment["data"]["train_on_error"] = "report"
    code, out, err = lightning("fit", "--config", write_config(experiment), "--trainer.max_epochs", 1)
    assert code == 1
    assert "out_of_domain: none of its 6 files could be read; the first: " in error_line(err)
    run = tmp_path / "runs" / "tiny" / "version_0"
    scores = scores_of(run)
    for name, count in (("train", 1), ("in_domain", 1), ("out_of_domain", 6)):
        line = next(line for line in out.splitlines() if f"{count} of {name}, listed in" in line)
        assert line.startswith("could not be read:")
        listed = Path(line.split("listed in ")[1])
        assert listed.resolve() == ((run / "scores" if name == "train" else scores) / f"{name}.failed.csv").resolve()
        assert len(listed.read_text().splitlines()) == 1 + count
    assert len(ScoreTable.read(scores / "in_domain.csv")) == 7
    assert not (scores / "out_of_domain.csv").exists()
    assert (scores / "dev.csv").exists()
    code, out, err = lightning("predict", "--config", run / "config.yaml", "--ckpt_path", "best")
    assert code == 1
    assert "out_of_domain: none of its 6 files could be read" in error_line(err)
    assert "1 of in_domain, listed in" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.gate_rl", "1"], "unknown option --model.gate_rl; did you mean --model.gate_lr?"),
        (["--trainer.epochs", "3"], "did you mean --trainer.max_epochs or --trainer.min_epochs?"),
        (["--max_epochs", "3"], "unknown option --max_epochs; did you mean --trainer.max_epochs?"),
        (["--data.dev.path", "x.csv"], "unknown option --data.dev; data has augment_before_crop, batch_size, "),
        (
            ["--model.adaptation.init_args.rnk", "4"],
            "moelora_ad.adapters.MoELoRA has no argument 'rnk'; did you mean 'rank'?",
        ),
        (["--model.adaptation", "moelora_ad.adapters.MoELora"], "did you mean 'MoELoRA'?"),
        (["--model.adaptation.init_args.rank", "x"], "Expected a <class 'int'>. Got value: x"),
        (["--model.adaptation.init_args.rank", "0"], "rank is 0: a 32 -> 32 projection takes 1 to 32"),
        (["--model.adaptation.init_args.targets", "[q_prj]"], "did you mean 'q_proj'?"),
        (["--model.backbone.init_args.source", "./nowhere"], "backbone ./nowhere: no such folder"),
        (["--trainer.max_epoch", "1"], "did you mean --trainer.max_epochs?"),
        (["--data.batch_size", "0"], "a batch size of 0 is too small"),
        (["--data.train_weights", "{a: 1}"], "data.train_weights needs data.train to be several corpora with names"),
        (["--data.eval_segment", "moelora_ad.audio.FullUterance"], "did you mean 'FullUtterance'?"),
        (["--data.eval_segment", "{sampels: 3}"], "moelora_ad.audio.Segment has no argument 'sampels'"),
        (["--data.eval_segment.samples", "0"], "segment: samples must be at least 1, not 0"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["--trainer.devices", "2", "--trainer.strategy", "ddp_spawn"], "trainer.strategy: forked or spawned"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(
    lightning, experiment, write_config, arguments, message
):
    code, _, err = lightning("fit", "--config", write_config(experiment), *arguments)
    assert message in error_line(err)
    assert code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(adaptaton=1), "unknown key 'model.adaptaton'; did you mean 'model.adaptation'?"),
        (lambda c: c["data"].update(dev={"path": "x.csv"}), "unknown key 'data.dev'; data has augment_before_crop, "),
        (lambda c: c.update(modle={"x": 1}), "unknown key 'modle'; did you mean 'model'?"),
        (lambda c: c["data"].update(batch_sze=1), "unknown key 'data.batch_sze'; did you mean 'data.batch_size'?"),
        (lambda c: c["data"]["train"]["init_args"].update(pth="x"), "has no argument 'pth'; did you mean 'path'?"),
    ],
)
def test_a_wrong_key_in_yaml_gets_the_nearest_name(lightning, experiment, write_config, change, message):
    change(experiment)
    code, _, err = lightning("fit", "--config", write_config(experiment))
    assert message in error_line(err)
    assert code == 2


def test_too_little_configuration_is_told_with_what_to_do(lightning, experiment, write_config):
    lora, sweep = (EXPERIMENTS / name for name in ("adapters/lora_r8.yaml", "sweeps/quickstart.yaml"))
    adaptation = experiment["model"].pop("adaptation")
    partial = write_config(experiment)
    parts = "model.backbone, model.adaptation, model.classifier"
    for verb, arguments, told in (
        ("fit", (), f"the configuration has no {parts}; give an experiment's with --config, such as quickstart "),
        ("test", (), f"the configuration has no {parts}; give an experiment's with --config, such as quickstart "),
        ("fit", ("--config", "adapters/lora_r8"), f"model.classifier; {lora} only changes an experiment: name one "),
        ("fit", ("--config", partial), f"the configuration has no model.adaptation; add it to {partial}"),
        ("fit", ("--config", "sweeps/quickstart"), f"{sweep}: describes a sweep, and not one run: give it to the "),
    ):
        code, out, err = lightning(verb, *arguments)
        assert (code, out) == (2, "")
        assert error_line(err).startswith(f"lightning {verb}: error: ")
        assert told in error_line(err)
    whole = ("--config", partial, f"--model.adaptation={json.dumps(adaptation)}")
    assert lightning("fit", *whole, "--print_config")[0] == 0


def damage_missing_protocol(manifest: Path) -> str:
    manifest.unlink()
    return f"{manifest}"


def damage_missing_audio(manifest: Path) -> str:
    manifest.write_text(manifest.read_text().replace(".flac", ".nowhere.flac", 1))
    return ".nowhere.flac"


def damage_text_as_flac(manifest: Path) -> str:
    text = manifest.with_name("text.flac")
    text.write_text("this is not audio")
    rows = list(csv.reader(manifest.open()))
    rows[1][0] = str(text)
    manifest.write_text("".join(",".join(row) + "\n" for row in rows))
    return f"{text}"


def damage_label(manifest: Path) -> str:
    manifest.write_text(manifest.read_text().replace("bonafide", "perhaps", 1))
    return f"{manifest}, line 2, column 'label'"


def damage_empty(manifest: Path) -> str:
    manifest.write_text(manifest.read_text().splitlines()[0] + "\n")
    return f"{manifest}"


def damage_no_bona_fide(manifest: Path) -> str:
    manifest.write_text("".join(line for line in manifest.open() if "bonafide" not in line))
    return "data.val: dev has no bona fide trials among 4"


@pytest.mark.parametrize(
    ("damage", "workers"),
    [
        *((damage_missing_audio, workers) for workers in (0, 1)),
        *((damage_text_as_flac, workers) for workers in (0, 1)),
        *((damage, 0) for damage in (damage_missing_protocol, damage_label, damage_empty, damage_no_bona_fide)),
    ],
)
def test_faulty_data_is_one_line_and_exit_code_1(lightning, experiment, write_config, damage, workers):
    where = damage(Path(experiment["data"]["val"]["init_args"]["path"]))
    experiment["data"]["num_workers"] = workers
    code, _, err = lightning("fit", "--config", write_config(experiment))
    assert where in error_line(err)
    assert code == 1


def test_an_empty_split_names_the_splits_that_are_there(lightning, experiment, write_config):
    manifest = Path(experiment["data"]["val"]["init_args"]["path"])
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([lines[0] + ",split", *(line + ",dev" for line in lines[1:])]) + "\n")
    experiment["data"]["val"]["init_args"]["split"] = "development"
    code, _, err = lightning("fit", "--config", write_config(experiment))
    assert "dev" in error_line(err)
    assert "development" in error_line(err)
    assert code == 1


def test_the_switch_that_leaves_out_the_test_and_a_checkpoint_of_another_model(
    lightning, experiment, write_config, tmp_path
):
    code, out, _ = lightning("fit", "--config", write_config(experiment), "--test_after_fit", "false")
    assert code == 0
    assert "checkpoint:" in out
    assert not (tmp_path / "runs" / "tiny" / "version_0" / "scores").exists()
    checkpoint = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    experiment["model"]["adaptation"]["init_args"]["num_experts"] = 3
    code, _, err = lightning("test", "--config", write_config(experiment), "--ckpt_path", checkpoint)
    assert "the checkpoint does not fit the configuration: it lacks" in error_line(err)
    assert code == 1
    code, _, err = lightning("test", "--config", write_config(experiment), "--ckpt_path", tmp_path / "nowhere.ckpt")
    assert "nowhere.ckpt does not exist" in error_line(err)
    assert code == 2
    run = checkpoint.parents[1]
    code, _, err = lightning("test", "--config", write_config(experiment), "--ckpt_path", run)
    best = read_record(run).checkpoint_path
    assert best != checkpoint
    assert error_line(err).endswith(f"its checkpoints: {best}, {checkpoint}")  # the best one comes first
    assert code == 2
    checkpoint.write_bytes(pickle.dumps(print))
    code, _, err = lightning("test", "--config", write_config(experiment), "--ckpt_path", checkpoint)
    assert "last.ckpt is not a readable checkpoint" in error_line(err)
    assert code == 2


def test_two_processes_give_the_scores_of_one(experiment, write_config, tmp_path, lightning):
    """Odd numbers of trials, 7 and 5, in batches of 3 over two gloo processes, in fit's validation and in test. Two of
    the 7 files of in_domain cannot be read, one in each process."""
    for corpus in (experiment["data"]["val"], *experiment["data"]["test"].values()):
        path = Path(corpus["init_args"]["path"])
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    experiment["data"]["batch_size"] = 2
    path = Path(experiment["data"]["test"]["in_domain"]["init_args"]["path"])
    path.write_text(path.read_text().replace(".flac", ".nowhere.flac", 2))
    command = [sys.executable, "-m", "moelora_ad", "fit", "--config", str(write_config(experiment))]
    command += ["--trainer.max_epochs", "1", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 of in_domain, listed in" in done.stdout
    first = tmp_path / "runs" / "tiny" / "version_0"
    checkpoint = str(next((first / "checkpoints").glob("epoch*.ckpt")))
    arguments = ("--config", write_config(experiment), "--ckpt_path", checkpoint, "--score_folder", tmp_path / "one")
    assert lightning("test", *arguments)[0] == 1
    assert lightning("validate", *arguments)[0] == 0
    both = {path.name: path.read_bytes() for path in scores_of(first).glob("*.csv")}
    assert both == {path.name: path.read_bytes() for path in (tmp_path / "one").glob("*.csv")}
    assert both["in_domain.failed.csv"].count(b"no such") == 2
    for name, count in (("dev", 7), ("in_domain", 5), ("out_of_domain", 5)):
        assert len(ScoreTable.read(tmp_path / "one" / f"{name}.csv")) == count


def test_ctrl_c_saves_a_checkpoint_that_fit_continues_from(experiment, write_config, tmp_path, lightning):
    command = [sys.executable, "-m", "moelora_ad", "fit", "--config", str(write_config(experiment))]
    process = subprocess.Popen(
        [*command, "--trainer.max_epochs", "1000", "--early_stopping.patience", "1000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # Tests that a shell runs in the background ignore SIGINT, and so would their child processes.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    checkpoint = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    try:
        for _ in range(600):
            if checkpoint.is_file() or process.poll() is not None:
                break
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    told = err.splitlines()[-1]
    assert told.startswith("python -m moelora_ad fit: interrupted; saved "), err
    saved = told.split("saved ")[1].split(";")[0]
    epoch = torch.load(saved, weights_only=True)["epoch"]
    more = ("--ckpt_path", saved, "--trainer.max_epochs", epoch + 2, "--test_after_fit", "false")
    code, _, err = lightning("fit", "--config", write_config(experiment), *more)
    assert code == 0, err
    record = read_record(checkpoint.parents[1])
    assert (record.attempts, record.state, record.epoch) == (2, "finished", epoch + 2)


@pytest.mark.parametrize(
    ("number", "code", "told"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_an_evaluation_that_is_stopped_says_so_in_one_line(
    lightning, experiment, write_config, monkeypatch, verb, number, code, told
):
    monkeypatch.setattr(
        DetectionModule, f"{verb.replace('validate', 'validation')}_step", lambda *_: os.kill(os.getpid(), number)
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stopped, _, err = lightning(verb, "--config", write_config(experiment), "--untrained", "true")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (stopped, err.splitlines()[-1]) == (code, f"lightning {verb}: {told}")
    assert "Traceback" not in err


def test_next_commands_can_be_copied_when_a_folder_has_spaces(
    lightning, experiment, write_config, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    experiment["trainer"]["logger"]["init_args"]["save_dir"] = "~/my runs; all"
    code, out, _ = lightning("fit", "--config", write_config(experiment), "--trainer.max_epochs", 1)
    assert code == 0
    commands = [shlex.split(line.removeprefix("next:")) for line in out.splitlines() if line.startswith("next:")]
    assert [command[:2] for command in commands] == [
        ["moelora-ad", "test"],
        ["moelora-ad", "evaluate"],
        ["moelora-ad", "export"],
    ]
    paths = [word for command in commands for word in command if "my runs" in word]
    assert len(paths) == 4
    assert all(Path(path).exists() for path in paths)
    assert all((tmp_path / "my runs; all").resolve() in Path(path).resolve().parents for path in paths)


def test_a_folder_that_cannot_be_made_is_one_line(lightning, experiment, write_config, tmp_path):
    (tmp_path / "file").write_text("")
    experiment["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path / "file" / "runs")
    code, _, err = lightning("fit", "--config", write_config(experiment))
    assert code == 1
    assert error_line(err) == f"lightning fit: error: {tmp_path}/file/runs: Not a directory"


def test_a_value_of_no_type_and_a_missing_package_are_told_without_types(lightning, experiment, write_config):
    config = write_config(experiment)
    code, _, err = lightning("fit", "--config", config, "--trainer.precision", "fp16")
    assert code == 2
    assert error_line(err).startswith("lightning fit: error: trainer.precision: 'fp16' is not one of: 64, 32, 16, ")
    assert error_line(err).endswith("; did you mean 'bf16'?")
    code, _, err = lightning("fit", "--config", config, "--trainer.limit_train_batches", "some")
    told, _, choices = error_line(err).partition(" is not one of: ")
    assert (code, told) == (2, "lightning fit: error: trainer.limit_train_batches: 'some'")
    assert sorted(choices.split(", ")) == ["null", "number", "whole number"]  # Python 3.10 lists them in another order
    for seed in (-1, 2**32):
        code, _, err = lightning("fit", "--config", config, "--seed_everything", str(seed))
        told = f"lightning fit: error: seed_everything: {seed} is not a whole number from 0 to 4294967295"
        assert (code, error_line(err)) == (2, told)
    if importlib.util.find_spec("mlflow") is None:
        code, _, err = lightning("fit", "--config", config, "--trainer.logger", "MLFlowLogger")
        assert code == 2
        assert err.startswith("lightning fit: error: lightning.pytorch.loggers.MLFlowLogger: Requirement 'mlflow")
        assert len(err) < 200

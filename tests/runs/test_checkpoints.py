"""Commands judge the checkpoint that they name, or stop with one line; never untrained weights by mistake."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from moelora_ad.adapters import MoELoRA
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.models import MeanPooling, WhisperBackbone
from moelora_ad.runs.checkpoints import best_checkpoint
from moelora_ad.runs.record import read_record
from moelora_ad.training import AudioDeepfakeDataModule, DetectionModule


def error_line(printed: str) -> str:
    assert "Traceback" not in printed, printed
    lines = [line for line in printed.splitlines() if "error:" in line]
    assert len(lines) == 1, printed
    return lines[0]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of every test, and a copy of it after a fit, see `run`."""
    return tmp_path_factory.mktemp("test"), tmp_path_factory.mktemp("trained") / "all"


@pytest.fixture
def tmp_path(places) -> Path:
    """The same empty folder for every test, because a run knows paths of its own by heart."""
    folder, _ = places
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


@pytest.fixture
def run(lightning, experiment, write_config, tmp_path, places) -> Path:
    """The folder of a finished run, trained once for all tests."""
    _, trained = places
    if not trained.exists():
        code, _, err = lightning("fit", "--config", write_config(experiment))
        assert code == 0, err
        shutil.copytree(tmp_path, trained)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "tiny" / "version_0"


def state_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


# No checkpoint, and checkpoints by name


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_without_a_checkpoint_nothing_is_judged_and_those_of_the_run_are_named(lightning, run, verb):
    code, out, err = lightning(verb, "--config", run / "config.yaml")
    best = read_record(run).checkpoint_path
    assert code == 2
    assert out == ""
    line = error_line(err)
    assert f"{verb} needs --ckpt_path" in line
    assert f"best of this run: {best}" in line
    assert f"last of this run: {run / 'checkpoints' / 'last.ckpt'}" in line


def test_without_a_run_the_line_says_what_a_checkpoint_is(lightning, experiment, write_config):
    code, _, err = lightning("test", "--config", write_config(experiment))
    assert code == 2
    assert "the configuration is not that of a run with checkpoints (RUN/checkpoints/NAME.ckpt)" in error_line(err)


@pytest.mark.parametrize("case", ["where it was", "moved", "of the default logger"])
def test_a_run_continues_in_its_folder_with_its_record_its_best_checkpoint_and_its_metrics(
    lightning, experiment, write_config, tmp_path, monkeypatch, request, case
):
    """The second epoch is made worse than the first, so that the best checkpoint is the earlier one."""
    if case == "of the default logger":
        del experiment["trainer"]["logger"]
        experiment["trainer"]["default_root_dir"] = str(tmp_path / "runs")
        run = tmp_path / "runs" / "lightning_logs" / "version_0"
        assert lightning("fit", "--config", write_config(experiment))[0] == 0
    else:
        run = request.getfixturevalue("run")
    if case == "moved":
        (tmp_path / "runs").rename(tmp_path / "there")
        run = tmp_path / "there" / "tiny" / "version_0"
    before, config, metrics = read_record(run), (run / "config.yaml").read_text(), (run / "metrics.csv").read_text()
    longer = ("--trainer.max_epochs", before.max_epochs + 1)

    def worse(self, name, value, *given, **named):
        return log(self, name, value + 1.0 if name == "dev/eer" else value, *given, **named)

    log = DetectionModule.log
    monkeypatch.setattr(DetectionModule, "log", worse)
    last = run / ".." / run.name / "checkpoints" / "last.ckpt"  # as a path from another folder begins
    given = ("last" if case == "moved" else last, *longer)
    code, _, err = lightning("fit", "--config", run / "config.yaml", "--ckpt_path", *given)
    assert code == 0, err
    assert "note:" not in err
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    assert (tmp_path / "runs").exists() == (case != "moved")
    after = read_record(run)
    assert (after.attempts, after.max_epochs, after.state) == (2, before.max_epochs + 1, "finished")
    assert after.checkpoint == before.checkpoint
    assert (run / "metrics-1.csv").read_text() == metrics
    assert (run / "metrics.csv").is_file()
    changed = config.replace(f"max_epochs: {before.max_epochs}", f"max_epochs: {before.max_epochs + 1}")
    assert (run / "config.yaml").read_text() == changed


def test_what_branches_from_a_run_leaves_it_alone(lightning, run):
    files = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    best, last = read_record(run).checkpoint_path, run / "checkpoints" / "last.ckpt"
    longer = ("--config", run / "config.yaml", "--trainer.max_epochs", 9, "--trainer.max_steps", 5)
    assert lightning("fit", *longer, "--ckpt_path", best)[0] == 0
    code, _, err = lightning("fit", *longer, "--ckpt_path", last, "--trainer.logger.init_args.name", "other")
    assert code == 0
    assert "note: this continues " in err
    assert "the best checkpoint is chosen among the epochs that come" in err
    assert files == {path: path.read_bytes() for path in files}
    assert (run.with_name("version_1") / "run.json").is_file()
    assert (run.parents[1] / "other" / "version_0" / "run.json").is_file()


@pytest.mark.parametrize("which", ["best", "last"])
def test_best_and_last_are_those_of_the_run(lightning, run, which, tmp_path):
    code, _, err = lightning(
        *("test", "--config", run / "config.yaml", "--ckpt_path", which, "--score_folder", tmp_path / "scores")
    )
    assert code == 0, err
    expected = read_record(run).checkpoint_path if which == "best" else run / "checkpoints" / "last.ckpt"
    told = json.loads((tmp_path / "scores" / "in_domain.json").read_text())
    assert told["checkpoint"]["path"] == str(expected)
    assert told["untrained"] is False


@pytest.mark.parametrize("verb", ["fit", "test"])
@pytest.mark.parametrize("which", ["best", "last"])
def test_best_or_last_of_nothing_is_one_line(lightning, experiment, write_config, run, verb, which):
    config = write_config(experiment)  # a configuration outside any run
    code, _, err = lightning(verb, "--config", config, "--ckpt_path", which)
    assert code == 2
    assert f"--ckpt_path {which}: the configuration is not that of a run" in error_line(err)
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    code, _, err = lightning(verb, "--config", run / "config.yaml", "--ckpt_path", which)
    assert code == 2
    assert f"has no {which} checkpoint" in error_line(err)
    assert sorted(path.name for path in run.parent.iterdir()) == ["version_0"]


def test_a_logger_of_a_given_version_names_the_run_too(lightning, experiment, write_config, tmp_path):
    experiment["trainer"]["logger"]["init_args"]["version"] = "seed_1"
    config = write_config(experiment, "mine.yaml")
    assert lightning("fit", "--config", config, "--trainer.max_epochs", 1)[0] == 0
    code, _, err = lightning("fit", "--config", config, "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert code == 0, err
    assert read_record(tmp_path / "runs" / "tiny" / "seed_1").epoch == 2
    # A new fit in the folder of a finished run is refused: its figures would be those of two trainings.
    code, _, err = lightning("fit", "--config", config)
    assert code == 1
    assert "seed_1 has a finished run: give the run another folder" in error_line(err)


def test_a_run_that_went_on_from_a_checkpoint_is_not_tested_by_that_one(lightning, run):
    config, last = run / "config.yaml", run / "checkpoints" / "last.ckpt"
    longer = ("--trainer.max_epochs", 3, "--trainer.logger.init_args.version", 1)
    assert lightning("fit", "--config", config, "--ckpt_path", last, *longer)[0] == 0
    resumed = run.with_name("version_1")
    assert yaml.safe_load((resumed / "config.yaml").read_text())["ckpt_path"] is None
    code, _, err = lightning("test", "--config", resumed / "config.yaml")
    assert code == 2
    assert "version_1" in error_line(err)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hpc", "resumes training, for fit only"),
        ("memory://nowhere.ckpt", "memory://nowhere.ckpt does not exist"),
        ("nosuch://x.ckpt", "cannot be reached: Protocol not known: nosuch"),
    ],
)
def test_checkpoints_elsewhere_are_one_line(lightning, experiment, write_config, path, message):
    code, _, err = lightning("test", "--config", write_config(experiment), "--ckpt_path", path)
    assert code == 2
    assert message in error_line(err)


def test_untrained_weights_are_judged_only_if_asked_for_and_their_scores_say_so(
    lightning, experiment, write_config, tmp_path
):
    config = write_config(experiment)
    code, out, _ = lightning("test", "--config", config, "--untrained", "true")
    assert code == 0
    assert "EER of UNTRAINED weights" in out
    folder = tmp_path / "runs" / "tiny" / "version_0" / "scores" / "untrained"
    assert json.loads((folder / "in_domain.json").read_text())["untrained"] is True
    code, out, _ = lightning("evaluate", folder, "--resamples", 0)
    assert "scores of untrained weights" in out
    for verb, more in (("fit", ()), ("test", ("--ckpt_path", "last"))):
        code, _, err = lightning(verb, "--config", config, "--untrained", "true", *more)
        assert code == 2
        assert "--untrained is for validate, test and predict without --ckpt_path" in error_line(err)


def test_a_test_leaves_the_configuration_of_the_run_as_it_was(lightning, experiment, write_config, tmp_path):
    experiment["trainer"]["logger"]["init_args"]["version"] = 0
    config = write_config(experiment, "mine.yaml")
    assert lightning("fit", "--config", config, "--trainer.max_epochs", 1)[0] == 0
    written = tmp_path / "runs" / "tiny" / "version_0" / "config.yaml"
    before = written.read_bytes()
    assert lightning("test", "--config", config, "--ckpt_path", "best", "--data.eval_batch_size", 2)[0] == 0
    assert written.read_bytes() == before


# Trial lists are read before anything expensive


def test_a_faulty_test_set_is_found_before_training(lightning, experiment, write_config, tmp_path):
    for name in ("eval", "ood"):
        (tmp_path / f"{name}.csv").unlink()
    code, _, err = lightning("fit", "--config", write_config(experiment))
    assert code == 1
    assert "data.test.in_domain: " in error_line(err)
    assert "data.test.out_of_domain: " in error_line(err)
    assert not (tmp_path / "runs").exists()
    assert lightning("fit", "--config", write_config(experiment), "--test_after_fit", "false")[0] == 0


def test_a_missing_corpus_is_told_before_the_backbone_is_looked_for(lightning, experiment, write_config, tmp_path):
    experiment["model"]["backbone"]["init_args"]["source"] = str(tmp_path / "no_backbone")
    (tmp_path / "train.csv").unlink()
    code, _, err = lightning("fit", "--config", write_config(experiment))
    assert code == 1
    assert "train.csv: no such file" in error_line(err)


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_one_faulty_test_set_does_not_keep_the_others_from_being_scored(lightning, run, tmp_path, verb):
    manifest = tmp_path / "eval.csv"
    manifest.write_text(manifest.read_text().replace("bonafide", "perhaps", 1))
    folder = tmp_path / "scores"
    code, out, err = lightning(verb, "--config", run / "config.yaml", "--ckpt_path", "best", "--score_folder", folder)
    assert code == 1
    assert f"in_domain: {manifest}, line 2, column 'label'" in error_line(err)
    assert {path.name for path in folder.glob("*.csv")} == {"out_of_domain.csv"}
    assert len(ScoreTable.read(folder / "out_of_domain.csv")) == 6
    (tmp_path / "ood.csv").unlink()
    code, out, err = lightning(verb, "--config", run / "config.yaml", "--ckpt_path", "best")
    assert (code, out) == (1, "")
    assert "data.test.in_domain: " in error_line(err)


# Test sets that the run is not configured with


def test_sets_of_other_configurations_go_elsewhere_and_are_in_no_average(lightning, run, write_config, tmp_path):
    before = {path: path.read_bytes() for path in (run / "scores").rglob("*.*") if path.is_file()}
    name = read_record(run).checkpoint_path.stem
    corpus = {"class_path": "moelora_ad.corpora.Manifest", "init_args": {"path": str(tmp_path / "train.csv")}}
    # One set has a new name; one has a name of the run's own, but other trials.
    mine = write_config({"data": {"test": {"calls": corpus, "in_domain": corpus}}}, "mine.yaml")
    arguments = ("--config", run / "config.yaml", "--config", mine, "--ckpt_path", "best")
    code, out, err = lightning("test", *arguments)
    assert code == 0, err
    other = run / "other_scores" / name
    assert f"other_scores/{name} (calls, in_domain: not configured in the run, in none of its averages)" in out
    assert {path.name for path in other.iterdir()} == {
        f"{s}.{e}" for s in ("calls", "in_domain") for e in ("csv", "json")
    }
    assert {path: path.read_bytes() for path in (run / "scores").rglob("*.*") if path.is_file()} == before
    # Scores of such sets in the run's own folder, from an earlier version or copied there, are left out as well.
    for file in other.glob("calls.*"):
        shutil.copy(file, run / "scores" / name)
    code, out, _ = lightning("results", run)
    assert code == 0
    assert "calls.csv is not of a set that the run is configured with, and is left out" in out
    assert "macro_all: mean of the test sets, seed by seed: in_domain, out_of_domain" in out
    figures = {
        s: ScoreTable.read(run / "scores" / name / f"{s}.csv").equal_error_rate().eer
        for s in ("in_domain", "out_of_domain", "calls")
    }
    code, out, _ = lightning("evaluate", run / "scores" / name, "--resamples", 0, "--to", tmp_path / "figures")
    assert "macro_all: mean of in_domain, out_of_domain" in out
    assert "calls: not a set that its run is configured with: in no average unless --average names it" in out
    assert averages(tmp_path / "figures")["macro_all"] == pytest.approx(
        (figures["in_domain"] + figures["out_of_domain"]) / 2
    )
    code, out, _ = lightning(
        *("evaluate", run / "scores" / name, "--resamples", 0, "--average", "calls", "out_of_domain"),
        *("--to", tmp_path / "asked"),
    )
    assert averages(tmp_path / "asked")["macro_all"] == pytest.approx((figures["calls"] + figures["out_of_domain"]) / 2)
    # The run's own file is replaced by scores of other trials.
    for file in other.glob("in_domain.*"):
        shutil.copy(file, run / "scores" / name)
    code, out, _ = lightning("results", run)
    assert "in_domain.csv is not of a set that the run is configured with, and is left out" in out


def averages(folder: Path) -> dict[str, float]:
    with (folder / "figures.csv").open(newline="") as file:
        return {row["part"]: float(row["eer"]) for row in csv.DictReader(file) if row["part"].startswith("macro")}


# Resuming, and starting from weights


def test_going_on_with_another_training_corpus_is_refused(lightning, run, write_config, tmp_path):
    corpus = {
        "class_path": "moelora_ad.corpora.Manifest",
        "init_args": {"path": str(tmp_path / "dev.csv"), "name": "new"},
    }
    mine = write_config({"data": {"train": corpus}}, "mine.yaml")
    arguments = ("--config", run / "config.yaml", "--config", mine, "--ckpt_path", "last", "--trainer.max_epochs", 3)
    code, _, err = lightning("fit", *arguments)
    assert code == 1
    line = error_line(err)
    assert "was trained on train (12 trials) and the configuration trains on new (8 trials)" in line
    assert "give --model.init_weights CHECKPOINT instead of --ckpt_path" in line
    # The same trials under another name and in another order count as the same training data.
    lines = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "moved.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    corpus["init_args"]["path"] = str(tmp_path / "moved.csv")
    mine = write_config({"data": {"train": corpus}}, "mine.yaml")
    code, _, err = lightning("fit", *arguments)
    assert code == 0, err


def test_load_from_checkpoint_as_lightnings_users_expect(run, data, trainer, tmp_path):
    path = read_record(run).checkpoint_path
    module = DetectionModule.load_from_checkpoint(path)
    assert module.learning_rates["experts"] is None
    saved = state_of(path)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in saved.items())
    changed = DetectionModule.load_from_checkpoint(path, adapter_lr=0.5)
    assert changed.learning_rates["experts"] == 0.5
    # Training continues from these weights: with a learning rate of zero, nothing moves.
    still = DetectionModule.load_from_checkpoint(path, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    trainer(tmp_path / "still", limit_val_batches=0).fit(still, datamodule=data())
    state = still.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())
    moved = shutil.copy(path, tmp_path / "moved.ckpt")
    with pytest.raises(InputError, match="no configuration"):
        DetectionModule.load_from_checkpoint(moved)
    again = DetectionModule.load_from_checkpoint(moved, hparams_file=run / "config.yaml")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in saved.items())
    backbone = WhisperBackbone(again.detector.backbone.init_args["source"])
    parts = {"backbone": backbone, "adaptation": MoELoRA(2, 2), "classifier": MeanPooling}
    by_parts = DetectionModule.load_from_checkpoint(moved, map_location="cpu", **parts)
    assert all(torch.equal(by_parts.state_dict()[name], tensor) for name, tensor in saved.items())
    folder = shutil.copytree(run, tmp_path / "elsewhere" / "run")  # a run that was moved
    there = DetectionModule.load_from_checkpoint(folder / path.relative_to(run), torch.device("cpu"))
    assert all(torch.equal(there.state_dict()[name], tensor) for name, tensor in saved.items())
    with pytest.raises(ValueError, match="always loaded with weights_only=True"):
        DetectionModule.load_from_checkpoint(path, weights_only=False)


def test_a_faulty_configuration_beside_a_checkpoint_is_told(run):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("MoELoRA", "MoELoRO"))
    with pytest.raises(InputError, match=r"config\.yaml: .*MoELoRO"):
        DetectionModule.load_from_checkpoint(read_record(run).checkpoint_path)


# Other features of Lightning that work, or are refused before training starts


def test_overfitting_takes_the_same_batches_in_every_epoch(data, trainer, tmp_path, run):
    seen = []

    class Watched(AudioDeepfakeDataModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            if self.trainer.training:
                seen.append((self.trainer.current_epoch, tuple(batch.trials.tolist())))
            return batch

    plain = data()
    source = Watched(
        train=plain.train, val=plain.val, batch_size=4, eval_batch_size=8, train_segment=plain.train_segment
    )
    module = DetectionModule.load_from_checkpoint(read_record(run).checkpoint_path)
    trainer(tmp_path / "over", max_epochs=3, overfit_batches=2).fit(module, datamodule=source)
    by_epoch = [[trials for epoch, trials in seen if epoch == number] for number in range(3)]
    assert by_epoch[0] == by_epoch[1] == by_epoch[2]
    assert len(by_epoch[0]) == 2
    assert len({trial for batch in by_epoch[0] for trial in batch}) == 8


@pytest.mark.parametrize("name", ["limit_val_batches", "overfit_batches"])
def test_a_part_of_dev_without_an_eer_is_told_before_training(lightning, experiment, write_config, name, tmp_path):
    code, _, err = lightning("fit", "--config", write_config(experiment), f"--trainer.{name}", 1)
    assert code == 1
    assert "1 batch of dev: 3 bona fide, 0 spoof, so there is no EER" in error_line(err)
    assert not list((tmp_path / "runs").rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            ("--checkpoint.monitor", "dev/err"),
            "WholeCheckpoint: its monitor 'dev/err' is never logged; did you mean 'dev/eer'?",
        ),
        (("--early_stopping.monitor", "accuracy"), "its monitor 'accuracy' is never logged; choose from dev/eer"),
    ],
)
def test_a_wrong_name_to_monitor_is_told_before_training(
    lightning, experiment, write_config, option, message, tmp_path
):
    code, _, err = lightning("fit", "--config", write_config(experiment), *option)
    assert code == 1
    assert message in error_line(err)
    assert not list((tmp_path / "runs").rglob("*.ckpt"))


def test_what_is_logged_may_be_monitored(lightning, experiment, write_config):
    options = ("--checkpoint.monitor", "train/loss", "--early_stopping.monitor", "dev/loss")
    assert lightning("fit", "--config", write_config(experiment), *options, "--trainer.max_epochs", 1)[0] == 0


def test_without_a_logger_no_file_of_the_user_is_overwritten(
    lightning, experiment, write_config, tmp_path, monkeypatch
):
    config = write_config(experiment)  # the user's own tmp_path / "config.yaml"
    before = config.read_bytes()
    monkeypatch.chdir(tmp_path)
    code, _, err = lightning("fit", "--config", "config.yaml", "--trainer.logger", "false")
    assert code == 1
    assert "has a config.yaml that is not of a run, and would be overwritten" in error_line(err)
    assert config.read_bytes() == before
    folder = tmp_path / "alone"
    arguments = ("fit", "--config", config, "--trainer.logger", "false", "--trainer.default_root_dir", folder)
    assert lightning(*arguments)[0] == 0
    assert read_record(folder).state == "finished"


def test_a_run_that_was_killed_before_it_kept_a_record_begins_anew(lightning, experiment, write_config, tmp_path):
    folder = tmp_path / "alone"
    options = ("--trainer.logger", "false", "--trainer.default_root_dir", folder, "--test_after_fit", "false")
    arguments = ("fit", "--config", write_config(experiment), *options, "--trainer.max_epochs", 1)
    assert lightning(*arguments)[0] == 0
    (folder / "run.json").unlink()
    code, _, err = lightning(*arguments, "--data.batch_size", 3)  # the folder has another run's config.yaml
    assert code == 1
    assert "has a config.yaml that is not of a run" in error_line(err)
    assert lightning(*arguments)[0] == 0
    assert read_record(folder).state == "finished"


def test_weights_in_another_model_are_told(lightning, run, tmp_path):
    """The names and shapes of the tensors fit, but the computation differs."""
    config = ("--config", run / "config.yaml")
    one_expert = ("--model.adaptation.init_args.top_k", 1)
    code, _, err = lightning("test", *config, "--ckpt_path", "best", *one_expert, "--score_folder", tmp_path / "one")
    assert code == 0
    assert "note: this is not the model that was trained: adaptation.top_k was None, is 1" in err
    earlier = torch.load(best_checkpoint(run), weights_only=True)  # of a version that recorded one argument more
    earlier["architecture"]["backbone.pretrained"] = "True"
    torch.save(earlier, tmp_path / "earlier.ckpt")
    for checkpoint in ("best", tmp_path / "earlier.ckpt"):
        code, _, err = lightning("test", *config, "--ckpt_path", checkpoint, "--score_folder", tmp_path / "as_trained")
        assert code == 0
        assert "not the model that was trained" not in err
    code, _, err = lightning("test", *config, "--ckpt_path", "best", "--model.adaptation.init_args.rank", 3)
    assert code == 1
    assert "lora_A is (2, 32), the model has (3, 32); give the configuration" in error_line(err)
    changed = tmp_path / "changed.yaml"
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["model"]["adaptation"]["init_args"]["top_k"] = 1
    changed.write_text(yaml.safe_dump(content))
    best = read_record(run).checkpoint_path
    code, _, err = lightning("export", "--checkpoint", best, "--config", changed, "--to", tmp_path / "model")
    assert code == 0, err
    assert "adaptation.top_k was None, is 1" in err

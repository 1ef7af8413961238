"""The command extend: from a model and a file with a new attack to a model with one more expert, and its costs."""

import csv
import importlib
import json
import runpy
from pathlib import Path

import pytest
import torch
import yaml

import moelora_ad.sweeps.local
from moelora_ad.adapters import AdaptationMethod, Extension, LoRA, MoELoRA, adapted_sites
from moelora_ad.cli.saved_models import extend as extend_command
from moelora_ad.cli.saved_models import extension_runs
from moelora_ad.cli.saved_models.extension_runs import Options, adaptations, configurations, read_data
from moelora_ad.configuration.data import data_of
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable, compare
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone
from moelora_ad.models.saving.specification import describe, maker
from moelora_ad.sweeps.run_folder import Notes, write_notes
from moelora_ad.sweeps.states import readable_status_of

PROJECT = Path(__file__).parents[2]
CLIPS = {"class_path": "moelora_ad.audio.Segment", "init_args": {"samples": 16_000, "short": "repeat"}}
OPTIONS = Options(None, 4, 1, 0.5, False, False, None)


@pytest.fixture
def model(small_whisper, tmp_path) -> Path:
    torch.manual_seed(0)
    detector = Detector(WhisperBackbone(small_whisper), MoELoRA(2, 2), MeanPooling)
    detector.window = 16_000
    detector.about = {"data": {"training": "MiniLA train"}, "notice": "A toy.", "limits": ["Knows little."]}
    detector.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data_file(experiment, tmp_path):
    """A function that writes the file with the new attack: the out-of-domain set of the tiny experiment."""

    def write(**changes) -> Path:
        given = experiment["data"]
        data = {
            "train": {"new": given["test"]["out_of_domain"], "replay": given["train"]},
            "val": given["val"],
            "test": {"new": given["test"]["out_of_domain"], "in_domain": given["test"]["in_domain"]},
        }
        path = tmp_path / "new_attack.yaml"
        path.write_text(yaml.safe_dump({"data": data | changes}))
        return path

    return write


@pytest.fixture
def in_this_process(monkeypatch):
    """Trains the runs in this process instead of in processes of their own, whose imports take seconds."""

    def run_here(runs, jobs, retry, view) -> None:
        from moelora_ad.cli.fit import run

        for one in runs:
            if readable_status_of(one).state != "finished":
                assert run(one.arguments(), "moelora-ad") == 0
                view.show(one, readable_status_of(one))

    monkeypatch.setattr(moelora_ad.sweeps.local, "run_here", run_here)


def test_a_model_is_extended_and_the_table_tells_what_came_of_it(
    lightning, model, data_file, tmp_path, in_this_process, monkeypatch
):
    to, runs = tmp_path / "extended", tmp_path / "runs"
    quiet = tmp_path / "quiet.yaml"
    quiet.write_text(yaml.safe_dump({"trainer": {"accelerator": "cpu", "enable_progress_bar": False}}))
    command = ("extend", model, "--data", data_file(), "--to", to, "--runs", runs, "--steps", 4, "--few", 2)
    code, printed, error = lightning(*command, "--config", quiet)
    assert code == 0, error
    # The new model has one more expert at every site and the old ones bit for bit; its card says what was done.
    old, new = Detector.from_pretrained(model), Detector.from_pretrained(to)
    assert [len(layer.experts) for _, layer in adapted_sites(new)] == [3] * 8
    assert all(torch.equal(new.state_dict()[name], tensor) for name, tensor in old.state_dict().items())
    card = (to / "README.md").read_text()
    assert "## Changes after training\n\n- extended from model (SHA-256 of its weights " in card
    assert "- training of model: MiniLA train" in card
    assert (new.about["notice"], new.about["limits"]) == ("A toy.", ["Knows little."])
    assert "| LoRA experts | 1,024 |" in card  # the parameters of the new expert
    assert "| classifier |" not in card
    # The table of changes agrees with `compare` on the score files.
    report = json.loads((tmp_path / "extended_report" / "extension.json").read_text())
    rows = {(row["way"], row["set"]): row for row in report["changes"]}
    assert {way for way, _ in rows} == {"new expert", "all, on new", "all, on old and new"}
    assert [name for way, name in rows if way == "new expert"] == ["new", "in_domain", "mean forgetting"]
    (scores,) = (runs / "extended" / "seed_1" / "scores").glob("epoch*")
    for name in ("new", "in_domain"):
        tables = [ScoreTable.read(folder / f"{name}.csv") for folder in (scores, runs / "before")]
        wanted = compare(*tables)["eer"]
        row = rows["new expert", name]
        assert (row["eer_after"], row["eer_before"], row["change"]) == wanted[:3]
        assert (row["low"], row["high"]) == wanted.interval
    assert rows["new expert", "mean forgetting"]["change"] == rows["new expert", "in_domain"]["change"]
    with (tmp_path / "extended_report" / "extension.csv").open() as file:
        assert [float(row["change"]) for row in csv.DictReader(file)] == [row["change"] for row in report["changes"]]
    assert "| new expert | new (new) |" in (tmp_path / "extended_report" / "extension.md").read_text()
    table = printed[printed.index("EER % before and after") :]
    assert max(map(len, table[: table.index("report:")].splitlines()[:-3])) <= 80
    # The run on the new attack has nothing but --few of its trials; the extension draws half of its trials from them.
    made = yaml.safe_load((runs / "all_on_new.yaml").read_text())
    assert made["data"]["train"].keys() == {"new"}
    assert made["data"]["train"]["new"]["init_args"]["num"] == 2
    assert yaml.safe_load((runs / "extended.yaml").read_text())["data"]["train_weights"] == {"new": 0.5, "replay": 0.5}
    # A second call trains nothing again, and --alone leaves the other ways out. The table is shown even if it cannot be
    # written.
    (tmp_path / "extended_report" / "extension.md").unlink()
    (tmp_path / "extended_report" / "extension.md").mkdir()
    code, printed, error = lightning(*command, "--config", quiet, "--alone")
    assert (code, "extension.md: Is a directory" in error, error.count("error:")) == (1, True, 1)
    assert "left out by --alone" in printed
    assert "epoch" not in printed.partition("EER % before")[0].rpartition("scores:")[2].replace("/epoch", "")
    assert "replaced the model that was there (MoELoRA)\n" in printed
    assert "EER % before and after" in printed
    # A run of other settings is refused before anything is trained.
    notes = Notes({"system": "extended", "seed": 1, "configs": {"other.yaml": "0"}, "options": {}}, exit_code=0)
    write_notes(runs / "extended" / "seed_1", notes)
    monkeypatch.setattr(moelora_ad.sweeps.local, "run_here", None)
    code, printed, error = lightning(*command, "--config", quiet, "--alone")
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert "extended: differs: " in error
    assert f"see {runs}/extended/seed_1, or give another --to, or other --runs" in error


def test_of_a_model_whose_encoder_and_head_are_elsewhere_in_bfloat16(
    lightning, small_whisper, data_file, tmp_path, in_this_process, monkeypatch
):
    """The trainer's precision is that of all runs; the old experts stay as they are."""
    (tmp_path / "own_head.py").write_text(
        "from moelora_ad.models import MeanPooling\n\n\nclass Head(MeanPooling):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model, to, quiet = tmp_path / "model", tmp_path / "extended", tmp_path / "quiet.yaml"
    detector = Detector(WhisperBackbone(small_whisper), MoELoRA(2, 2), importlib.import_module("own_head").Head)
    detector.window = 16_000
    detector.save_pretrained(model, with_backbone=False)
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "precision": "bf16-true"}
    quiet.write_text(yaml.safe_dump({"trainer": trainer}))
    command = ["extend", model, "--data", data_file(), "--to", to, "--runs", tmp_path / "runs", "--config", quiet]
    command += ["--steps", 1, "--few", 2, "--alone"]
    for option, value, told in (
        ("--allow", "own_head", "Head is code from outside moelora_ad: if you trust it, name its package, --allow "),
        ("--backbone", small_whisper, "is not part of the model and not on this machine: give its place with --backb"),
    ):
        code, printed, error = lightning(*command)
        assert (code, printed, error.count("\n"), told in error) == (2, "", 1, True), error
        # The commands that take the model for a checkpoint read the same options.
        evaluation = ["test", "--config", data_file(), "--ckpt_path", model, *command[command.index("--alone") + 1 :]]
        code, printed, error = lightning(*evaluation)
        assert (code, printed, error.count("\n"), told in error) == (2, "", 1, True), error
        command += [option, value]
    code, printed, error = lightning(*command)
    assert code == 0, error
    assert "EER % before and after" in printed
    new = Detector.from_pretrained(to, allow=["own_head"])
    assert new.precision == "bf16-true"
    assert [len(layer.experts) for _, layer in adapted_sites(new)] == [3] * 8
    assert all(torch.equal(new.state_dict()[name], tensor) for name, tensor in detector.state_dict().items())


def test_a_faulty_configuration_is_told_before_anything_is_scored(lightning, model, data_file, tmp_path):
    faulty = tmp_path / "faulty.yaml"
    faulty.write_text(yaml.safe_dump({"model": {"nonsense": 3}}))
    command = ("extend", model, "--data", data_file(), "--to", tmp_path / "to", "--runs", tmp_path / "runs")
    code, printed, error = lightning(*command, "--config", faulty)
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert error.startswith("lightning extend: error: ")
    assert f"{faulty}: unknown key 'model.nonsense'" in error


def test_what_a_file_lacks_is_one_line(lightning, model, data_file, tmp_path, experiment):
    def refusal(path: Path, *more: object) -> str:
        code, _, error = lightning("extend", model, "--data", path, "--to", tmp_path / "to", *more)
        assert code == 2
        assert error.count("\n") == 1
        return error

    corpus = experiment["data"]["train"]
    assert "data.train has replay: call what is new 'new', or 'new_...'" in refusal(data_file(train={"replay": corpus}))
    assert "data.test has no set of the new attack" in refusal(data_file(test={"old": corpus}))
    assert "has no data.train: give a corpus" in refusal(data_file(train=None))
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"data": {}, "model": {}}))
    assert "has 'model' beside data: give that in a file of its own, by --config" in refusal(other)
    assert "no such file" in refusal(tmp_path / "gone.yaml")
    assert "--few: 0 is below 1" in refusal(data_file(), "--few", 0)
    assert "--start: must be above 0 and below 1, not 1.0" in refusal(data_file(), "--start", 1)
    assert "--tether: must be 0 or more, not -1.0" in refusal(data_file(), "--tether", -1)
    assert "--report: " in refusal(data_file(), "--report", other)
    assert "other.yaml is not a folder" in refusal(data_file(), "--report", other)
    assert "did you mean extend/new_attack?" in refusal("new_attack")
    code, _, error = lightning("extend", model, "--data", data_file(), "--to", model)
    assert code == 2
    assert "is the model that is extended" in error


def test_packaged_configurations_have_names(model, lightning, tmp_path, monkeypatch):
    """What is given to the runs is the file of that name; nothing is scored or trained here."""
    planned = []
    monkeypatch.setattr(extend_command, "_score_before", lambda run, *_: planned.append(run) or 3)
    to, runs = tmp_path / "to", tmp_path / "runs"
    more = ("--config", "mini/float32", "--runs", runs)
    code, _, error = lightning("extend", model, "--data", "extend/new_attack", "--to", to, *more)
    assert (code, error) == (3, "")
    folder = PROJECT / "experiments"
    assert planned[0].configs == (str(runs / "extended.yaml"), str(folder / "mini" / "float32.yaml"))
    wanted = yaml.safe_load((folder / "extend" / "new_attack.yaml").read_text())["data"]["test"]
    assert yaml.safe_load((runs / "extended.yaml").read_text())["data"]["test"].keys() == wanted.keys()


def test_without_old_data_the_old_model_holds_it(model, data_file, experiment):
    data = read_data(str(data_file(train=experiment["data"]["train"])), OPTIONS, CLIPS)
    parts = json.loads((model / "config.json").read_text())
    made = configurations(model, parts, None, data, OPTIONS)
    assert made.keys() == {"extended", "all_on_new"}
    assert made["extended"]["model"]["tether"]["init_args"] == {"weight": extension_runs.TETHER}
    assert "tether" not in made["all_on_new"]["model"]
    assert data["eval_segment"] == CLIPS
    data = read_data(str(data_file()), OPTIONS, CLIPS)
    assert configurations(model, parts, None, data, OPTIONS)["extended"]["model"]["tether"] is None


@pytest.mark.parametrize(
    ("method", "experts"),
    [
        (LoRA(4, alpha=8.0), 2),
        (MoELoRA(3, 4, top_k=2, share_gate=True, freeze_experts=[0]), 4),
        (MoELoRA(3, 4, extend=Extension(2, start=0.1)), 6),
        (LoRA(4, targets="layers.*q_proj"), 2),
    ],
)
def test_the_configuration_of_any_mixture(method, experts):
    """From a saved model's description: its extension, even if already extended, and the training of all of it."""
    described = json.loads(json.dumps(describe(method, leave_out=method.initial_arguments)))
    extended, whole = (maker(one, AdaptationMethod)() for one in adaptations(described, OPTIONS))
    before = getattr(method, "num_experts", 1)
    assert (extended.num_experts, getattr(whole, "num_experts", 1)) == (experts, before)
    assert extended.extend.experts == 1 + (method.extend.experts if getattr(method, "extend", None) else 0)
    assert extended.policy.added == extended.extend.experts
    assert getattr(whole, "extend", None) is None
    assert not getattr(whole, "freeze_experts", ())
    if isinstance(method, MoELoRA):
        assert whole.policy == method.policy
    assert (extended.rank, extended.alpha, [*extended.targets]) == (method.rank, method.alpha, [*method.targets])


def test_other_adaptations_are_refused_by_name():
    with pytest.raises(InputError, match=r"is adapted with moelora_ad\.adapters\.FullFineTuning: "):
        adaptations({"class_path": "moelora_ad.adapters.FullFineTuning", "init_args": {}}, OPTIONS)


def test_the_example_trains_and_tests_on_different_trials(monkeypatch):
    monkeypatch.chdir(PROJECT)
    example = "experiments/extend/new_attack.yaml"
    assert read_data(example, OPTIONS, CLIPS)["train_weights"] == {"new": 0.5, "replay": 0.5}
    data = data_of([example], [])
    data.read_trials("fit", test=True)
    parts = [
        {Path(trial.audio).stem for trial in trials if trial.corpus == "MiniOOD"}
        for trials in (data.train_trials, data.trials_by_set["dev"], data.trials_by_set["new"])
    ]
    assert [len(part) for part in parts] == [40, 20, 148 - 60]
    assert len(set().union(*parts)) == 148
    assert {trial.corpus for trial in data.trials_by_set["in_domain"]} == {"MiniLA"}


def test_the_help_shows_the_file(lightning):
    code, printed, _ = lightning("extend", "--help")
    assert code == 0
    assert "replay: CORPUS" in printed


@pytest.mark.parametrize(("test", "sizes"), [(None, [144, 148]), (30, [30, 30])])
def test_a_late_attack_is_in_nothing_that_the_base_is_trained_or_selected_on(test, sizes):
    module = runpy.run_path(str(PROJECT / "experiments" / "extend" / "late_attack.py"))
    corpus = PROJECT / "experiments" / "quickstart" / "corpus"
    cases = [module["split"](corpus, "A03", seed, few=5, replay=10, test=test) for seed in (1, 2)]
    for sets in cases:
        attacks = {name: {row[3] for row in rows} for name, rows in sets.items()}
        assert all("A03" not in attacks[name] for name in ("base_train", "base_val", "replay", "old_attacks"))
        assert attacks["new"] == attacks["new_attack"] == {"A03", "-"}
        assert len(sets["new"]) == len(sets["replay"]) == 10
        tested = {row[0] for name in ("new_attack", "old_attacks") for row in sets[name]}
        assert tested.isdisjoint({row[0] for name in ("base_train", "base_val", "val", "new") for row in sets[name]})
        assert {row[1] for row in sets["replay"]} <= {row[1] for row in sets["base_train"]}
        assert [len(sets[name]) for name in ("unknown_attacks", "out_of_domain")] == sizes
    one, other = cases
    assert one["new"] != other["new"]
    assert all(one[name] == other[name] for name in ("unknown_attacks", "out_of_domain", "new_attack", "old_attacks"))

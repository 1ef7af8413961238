"""The command configs: the package's configurations are listed, shown, copied and checked."""

import json
from pathlib import Path

import pytest

from moelora_ad.cli import configs

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_list_names_everything_and_says_what_it_is(run_verb, elsewhere):
    code, out, _ = run_verb(configs, "list", "--json", "-")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["paper"]["kind"] == "experiment"
    assert rows["adapters/lora_r8"] == {
        "name": "adapters/lora_r8",
        "kind": "overlay",
        "what": "One rank-8 LoRA on the attention projections.",
        "path": str(EXPERIMENTS / "adapters" / "lora_r8.yaml"),
    }
    assert rows["quickstart/corpus"]["kind"] == "data"
    assert all(row["what"] and Path(row["path"]).exists() for row in rows.values())
    assert len({row["what"] for row in rows.values()}) == len(rows)
    code, out, _ = run_verb(configs, "list", "--json", "list.json")
    assert code == 0
    assert all(name in out for name in rows)
    assert json.loads((elsewhere / "list.json").read_text()) == list(rows.values())


@pytest.mark.parametrize("columns", [40, 80])
def test_the_list_fits_the_terminal_and_nothing_is_cut(run_verb, monkeypatch, columns):
    rows = json.loads(run_verb(configs, "list", "--json", "-")[1])
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = run_verb(configs, "list")[1].splitlines()
    assert all(len(line) <= columns for line in lines[:-1])  # the last one is a folder, to be copied
    assert not any("…" in line for line in lines)
    # Line by line the two columns are side by side: every word is there, and of a broken one its parts.
    words = {word for row in rows for word in row["what"].split() if len(word) < 12 and not set("_/-") & set(word)}
    assert words <= set(" ".join(lines).split())


def test_what_is_no_configuration_is_neither_shown_nor_copied(run_verb, elsewhere, quickstart):
    sound = next(quickstart.rglob("*.flac"))
    for verb in ("show", "copy"):
        for path, told in ((sound, "is not YAML"), (quickstart, "is a folder, not a configuration")):
            code, out, err = run_verb(configs, verb, path)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert f"{path}: {told}" in err
    assert not list(elsewhere.iterdir())


def test_a_configuration_is_shown_as_it_is(run_verb):
    assert run_verb(configs, "show", "quickstart")[:2] == (0, (EXPERIMENTS / "quickstart.yaml").read_text())
    code, _, err = run_verb(configs, "show", "quickstart/corpus")
    assert code == 2
    assert "is a folder of data" in err


def test_a_copy_overwrites_nothing(run_verb, elsewhere):
    original = (EXPERIMENTS / "adapters" / "lora_r8.yaml").read_bytes()
    assert run_verb(configs, "copy", "adapters/lora_r8")[0] == 0
    assert (elsewhere / "lora_r8.yaml").read_bytes() == original
    code, out, _ = run_verb(configs, "copy", "adapters/lora_r8", "mine/here.yaml")
    assert (code, (elsewhere / "mine" / "here.yaml").read_bytes()) == (0, original)
    assert out.splitlines()[-1] == "next: moelora-ad fit --config quickstart --config mine/here.yaml"
    (elsewhere / "lora_r8.yaml").write_text("system: mine\n")
    code, _, err = run_verb(configs, "copy", "adapters/lora_r8")
    assert code == 2
    assert "lora_r8.yaml already exists" in err
    assert (elsewhere / "lora_r8.yaml").read_text() == "system: mine\n"
    assert run_verb(configs, "copy", "adapters/lora_r8", "--overwrite")[0] == 0
    assert (elsewhere / "lora_r8.yaml").read_bytes() == original


@pytest.mark.parametrize(
    ("name", "then"),
    [
        ("quickstart", "fit --config mine.yaml"),
        ("adapters/lora_r8", "fit --config quickstart --config mine.yaml"),
        ("sweeps/quickstart", "sweep mine.yaml"),
    ],
)
def test_a_copy_comes_with_the_command_that_takes_it(run_verb, name, then):
    _, out, _ = run_verb(configs, "copy", name, "mine.yaml")
    assert out.splitlines()[-1] == f"next: moelora-ad {then}"
    names = [word for word in then.split()[1:] if word != "--config"]
    assert run_verb(configs, "validate", *names)[0] == 0


def test_data_is_copied_with_its_licences(run_verb, elsewhere):
    assert run_verb(configs, "copy", "quickstart/corpus", "there/mini")[0] == 0
    source = EXPERIMENTS / "quickstart" / "corpus"
    files = {path.relative_to(source): path.stat().st_size for path in source.rglob("*") if path.is_file()}
    copied = elsewhere / "there" / "mini"
    assert {p.relative_to(copied): p.stat().st_size for p in copied.rglob("*") if p.is_file()} == files
    assert Path("ATTRIBUTION.md") in files
    code, _, err = run_verb(configs, "copy", "quickstart/corpus", "there/mini", "--overwrite")
    assert code == 2
    assert "move it away" in err


def test_configurations_are_checked_as_fit_reads_them(run_verb, elsewhere):
    code, out, _ = run_verb(configs, "validate", "quickstart", "adapters/lora_r8")
    assert (code, out) == (0, "quickstart, adapters/lora_r8: valid\n")
    assert run_verb(configs, "validate", "--config", "quickstart", "--config", "adapters/lora_r8") == (code, out, "")
    code, _, err = run_verb(configs, "validate", "quickstart", "--config", "adapters/lora_r8")
    assert code == 2
    assert "either as NAME or with --config" in err
    (elsewhere / "mine.yaml").write_text("model:\n  adaptation:\n    init_args:\n      rnak: 4\n")
    code, _, err = run_verb(configs, "validate", "mine.yaml")
    assert code == 1
    assert err.startswith("mine.yaml (on top of paper): ")
    assert "'rnak'; did you mean 'rank'?" in err
    (elsewhere / "stranger.yaml").write_text("model:\n  classifier: strangers.Head\n")
    code, _, err = run_verb(configs, "validate", "quickstart", "stranger.yaml")
    assert code == 1
    assert "--allow strangers" in err
    code, _, err = run_verb(configs, "validate", "quikstart")
    assert code == 2
    assert "did you mean quickstart" in err


def test_of_a_sweep_every_system_is_checked(run_verb, elsewhere):
    code, out, err = run_verb(configs, "validate", "sweeps/quickstart")
    assert (code, err) == (0, "")
    systems = ("frozen", "lora_r8", "moe_lora_e3_r8_dense", "moe_lora_e3_r8_top2", "full_fine_tuning")
    assert out.splitlines() == [f"sweeps/quickstart, system {system}: valid" for system in systems]
    code, _, err = run_verb(configs, "validate", "quickstart", "sweeps/quickstart")
    assert code == 1
    assert "sweeps/quickstart is a sweep: check it on its own" in err

"""The command corpus, as a user runs it."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from moelora_ad.cli import main as cli

PROJECT = Path(__file__).parents[2]
CORPUS = PROJECT / "experiments/quickstart/corpus"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["moelora-ad", "corpus", *map(str, arguments)])
        try:
            code = cli.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def config(folder, name="c.yaml", **test):
    """A configuration that has only test corpora, given as manifests."""
    lines = ["data:", "  test:"]
    for key, path in test.items():
        lines += [f"    {key}:", "      class_path: moelora_ad.corpora.Manifest", f"      init_args: {{path: {path}}}"]
    (folder / name).write_text("\n".join(lines))
    return folder / name


def manifest(folder, name, count=4):
    (folder / name).mkdir()
    files = sorted(CORPUS.rglob("*.flac"))[:count]
    for path in files:
        shutil.copy(path, folder / name / path.name)
    lines = [f"{path.name},{('bonafide', 'spoof')[i % 2]}" for i, path in enumerate(files)]
    (folder / name / "m.csv").write_text("path,label\n" + "\n".join(lines))
    return folder / name / "m.csv"


def test_the_quickstarts_corpora_are_right(run, monkeypatch):
    monkeypatch.chdir(PROJECT)
    code, out, err = run("check", "--config", "experiments/quickstart.yaml", "--samples", "5")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.split()[:1] == ["train"])
    assert [line.split() for line in lines[first : first + 4]] == [
        ["train", "210", "84", "126", "unknown", "0"],
        ["dev", "110", "44", "66", "unknown", "0"],
        ["test.in_domain", "144", "60", "84", "unknown", "0"],
        ["test.out_of_domain", "148", "60", "88", "unknown", "0"],
    ]
    assert out.rstrip().endswith("no problems found")


def test_one_corpus_that_is_off_does_not_hide_another(run, tmp_path):
    right, broken = manifest(tmp_path, "right"), manifest(tmp_path, "broken")
    next(broken.parent.glob("*.flac")).write_bytes(b"text")
    path = config(tmp_path, right=right, none=tmp_path / "none.csv", broken=broken)
    code, out, _ = run("check", "--config", path, "--all", "--json", tmp_path / "report.json")
    assert code == 1
    assert "none.csv: no such file" in out
    assert "decoding: 1 of 4 files cannot be read" in out
    assert "2 of 3 corpora have problems" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == ["test.right", "test.none", "test.broken"]
    assert report["test.right"]["found"] == {"total": 4, "bona_fide": 2, "spoof": 2}
    assert report["test.right"]["problems"] == []
    assert len(report["test.broken"]["undecodable"]) == 1


def test_json_on_standard_output_is_all_that_is_printed(run, tmp_path):
    config(tmp_path, one=manifest(tmp_path, "one"), none=tmp_path / "none.csv")
    code, out, err = run("check", "--config", "c.yaml", "--json", "-")
    assert (code, err) == (1, "")
    run("check", "--config", "c.yaml", "--json", "r.json")
    assert json.loads(out) == json.loads((tmp_path / "r.json").read_text())
    code, out, err = run("list", "--json", "-")
    assert (code, err) == (0, "")
    run("list", "--json", "l.json")
    assert json.loads(out) == json.loads((tmp_path / "l.json").read_text())
    assert not (tmp_path / "-").exists()


def test_configurations_compose(run, tmp_path):
    first = config(tmp_path, "a.yaml", one=manifest(tmp_path, "one"))
    second = tmp_path / "b.yaml"
    second.write_text(f"""model: anything
data:
  train:
    a: {{class_path: moelora_ad.corpora.Manifest, init_args: {{path: {manifest(tmp_path, "a")}}}}}
    b: {{class_path: moelora_ad.corpora.Manifest, init_args: {{path: {manifest(tmp_path, "b")}}}}}
""")
    code, _, error = run("check", "--config", first, "--config", second, "--json", tmp_path / "r.json")
    assert (code, error) == (0, "")
    assert list(json.loads((tmp_path / "r.json").read_text())) == ["train.a", "train.b", "test.one"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("model: x", "no corpus in the part 'data'"),
        ("- a list", "is not a configuration: it has no fields"),
        ("data: 3", "the part 'data' is not a mapping"),
        ("a: [", "is not YAML"),
        ("data: {tset: 1}", "tset"),
        ("data: {test: {a: {class_path: moelora_ad.corpora.InTheWid}}}", "InTheWid"),
    ],
)
def test_usage_errors_are_one_line(run, tmp_path, text, message):
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    code, out, error = run("check", "--config", tmp_path / "c.yaml")
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_the_list_has_every_corpus(run, tmp_path):
    code, out, _ = run("list", "--json", tmp_path / "list.json")
    assert code == 0
    rows = {row["class_path"]: row for row in json.loads((tmp_path / "list.json").read_text())}
    assert "train 25,380" in rows["moelora_ad.corpora.ASVspoof2019"]["trials"]
    assert "eval 533,928" in rows["moelora_ad.corpora.ASVspoof2021DF"]["trials"]
    assert all(row["what"].endswith((".", ":")) or row["what"] for row in rows.values())
    assert all(path.rpartition(".")[2] in out for path in rows)
    assert "moelora_ad.corpora.Corpus" not in rows

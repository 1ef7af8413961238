"""The tutorials, word for word but small: few utterances, one epoch, from the weights of the packaged model."""

import contextlib
import glob
import importlib.util
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

import moelora_ad.cli.fit
import moelora_ad.cli.sweep
import moelora_ad.sweeps.local
from moelora_ad import evaluate, load
from moelora_ad.adapters import adapted_sites
from moelora_ad.evaluation import ScoreTable
from moelora_ad.inference import Scorer
from moelora_ad.models.saving.packaged import packaged_models
from moelora_ad.sweeps.states import readable_status_of

PROJECT = Path(__file__).parents[1]
TUTORIALS = PROJECT / "docs/tutorials"
FIRST, OF_FIRST = "first_detector", "watch_the_experts"  # the second tutorial looks at the run of the first
UTTERANCES = 6  # for each class in each list
SMALLER = {  # replacements in the text of a page
    r"(max_epochs:? )\d": r"\g<1>1",
    r"leave_one_out: attack ": "leave_one_out: {attack: [A04, A06]} ",
    r"seeds: \[1, 2, 3\]": "seeds: [1, 2]",
}
FEWER = {verb: ["--resamples", "100"] for verb in ("prune", "evaluate", "results")} | {  # additional options of verbs
    "extend": ["--steps", "2", "--few", "2"]
}


@pytest.fixture(scope="module")
def tutorials():
    """The module that runs the tutorials."""
    spec = importlib.util.spec_from_file_location("run", TUTORIALS / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quickstart) -> Path:
    """A project's folder with short lists of trials, in which training is one epoch from trained weights."""
    return project(tmp_path_factory.mktemp("tutorials"), quickstart / "backbone", str(packaged_models()["mini"]))


@pytest.fixture(scope="module")
def folder_of_many(tmp_path_factory, small_whisper) -> Path:
    """A project's folder for pages with many runs, with a small random encoder, which takes no time."""
    return project(tmp_path_factory.mktemp("tutorials"), small_whisper, None)


def project(folder: Path, backbone: Path, weights: str | None) -> Path:
    small = folder / "experiments/quickstart"
    for corpus in sorted((PROJECT / "experiments/quickstart/corpus").glob("Mini*")):
        (small / "corpus" / corpus.name / "protocols").mkdir(parents=True)
        (small / "corpus" / corpus.name / "flac").symlink_to(corpus / "flac")
        for protocol in (corpus / "protocols").glob("*.txt"):
            chosen = few_of(protocol.read_text().splitlines(keepends=True))
            (small / "corpus" / corpus.name / "protocols" / protocol.name).write_text("".join(chosen))
    (small / "backbone").symlink_to(backbone)
    (folder / "experiments/adapters").symlink_to(PROJECT / "experiments/adapters")
    config = yaml.safe_load((PROJECT / "experiments/quickstart.yaml").read_text(encoding="utf-8"))
    config["trainer"] |= {"max_epochs": 1, "accelerator": "cpu"}
    config["data"]["batch_size"] = UTTERANCES
    config["model"]["init_weights"] = weights
    (folder / "experiments/quickstart.yaml").write_text(yaml.safe_dump(config))
    return folder


def few_of(lines: list[str]) -> list[str]:
    """The last bona fide lines of a protocol, and two lines of each of its last attacks."""
    by_attack: dict[str, list[str]] = {}
    for line in lines:
        by_attack.setdefault(line.split()[3], []).append(line)
    bona_fide = by_attack.pop("-")
    spoofs = [line for attack in sorted(by_attack)[-(UTTERANCES // 2) :] for line in by_attack[attack][-2:]]
    return [*bona_fide[-UTTERANCES:], *spoofs]


@pytest.fixture
def run(tutorials, lightning, monkeypatch):
    """Runs a tutorial in a folder; returns each cell with what it printed."""

    def run_here(runs, jobs, retry, view) -> None:
        """Run here what a sweep or an extension starts as processes, as starting takes longer than training."""
        for one in runs:
            with contextlib.redirect_stdout(io.StringIO()):  # otherwise in a file of the run
                assert moelora_ad.cli.fit.run(one.arguments(), "moelora-ad") == 0, one.label
            view.show(one, readable_status_of(one))

    def shell(code: str) -> str:
        printed = []
        for line in code.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line, comments=True)
            assert program == "moelora-ad"
            words += FEWER.get(words[0], ())
            code, out, err = lightning(*(path for word in words for path in sorted(glob.glob(word)) or [word]))
            assert code == 0, f"{line}: {out}{err}"
            printed.append(out)
        return "".join(printed)

    def call(name: str, folder: Path) -> list:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "path", [*sys.path])
        for module in (moelora_ad.cli.sweep, moelora_ad.sweeps.local):
            monkeypatch.setattr(module, "run_here", run_here)
        if name == OF_FIRST and not (folder / "runs" / FIRST).exists():
            call(FIRST, folder)
        page = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
        for pattern, replacement in SMALLER.items():
            page = re.sub(pattern, replacement, page)
        return list(tutorials.run(page, shell))

    return call


def words(text: str) -> set[str]:
    """The words of an output, without numbers and drawing characters."""
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def check_outputs(done: list) -> dict[str, str]:
    """Check that each cell prints what its page shows, apart from figures; return the outputs by code."""
    assert done
    for cell, printed in done:
        assert bool(printed) == bool(cell.output), cell.code
        said, shown = words(printed), words(cell.output or "")
        assert len(said & shown) >= 0.6 * len(said), (cell.code, sorted(said - shown))
    return {cell.code: printed for cell, printed in done}


@pytest.mark.slow
def test_first_detector(run, folder):
    outputs = check_outputs(run(FIRST, folder))
    (scored,) = (printed for code, printed in outputs.items() if "Scorer(" in code)
    name, score = re.match(r"(\w+): (-?[\d.]+)", scored).groups()
    model = Scorer.from_pretrained(folder / "first_model")
    assert model(folder / f"experiments/quickstart/corpus/MiniLA/flac/{name}.flac").score == pytest.approx(
        float(score), abs=6e-3
    )


@pytest.mark.slow
def test_score_a_folder(run, folder):
    outputs = check_outputs(run("score_a_folder", folder))
    *_, last = outputs.values()
    scorer = Scorer.from_pretrained("mini")
    for line in last.splitlines():
        name, probability = line.split(": ")
        assert scorer(folder / "recordings" / name).probability(prior=0.9) == pytest.approx(
            float(probability), abs=6e-4
        )
    assert len(last.splitlines()) == UTTERANCES == len(list((folder / "recordings").iterdir()))
    assert (folder / "timeline/index.html").is_file()


@pytest.mark.slow
def test_own_corpus(run, folder):
    check_outputs(run("own_corpus", folder))
    assert len((folder / "calls.csv").read_text().splitlines()) == 1 + 3 * 2 * UTTERANCES
    calibration = load(folder / "own_model").calibration
    assert (calibration["num_bona_fide"], calibration["num_spoof"]) == (UTTERANCES, UTTERANCES)


@pytest.mark.slow
def test_a_new_adapter(run, folder, monkeypatch):
    try:
        check_outputs(run("new_adapter", folder))
        monkeypatch.chdir(folder)
        own = load("scaling_model", allow=["scaling"]).state_dict()
    finally:
        sys.modules.pop("scaling", None)
    scales = {name: tensor for name, tensor in own.items() if name.endswith(".scale")}
    assert len(scales) == 12
    assert all((scale != 1).any() and torch.allclose(scale, torch.ones(()), atol=0.1) for scale in scales.values())


@pytest.mark.slow
def test_watch_the_experts(run, folder):
    outputs = check_outputs(run("watch_the_experts", folder))
    *_, last = outputs.values()
    assert last.startswith("3 experts at 16 projections\n")
    gates = [float(number) for number in re.search(r"\[(.*)\]", last)[1].split()]
    assert sum(gates) == pytest.approx(1, abs=2e-3)
    assert (folder / "routing/routing.json").is_file()


@pytest.mark.slow
def test_grow_an_expert(run, folder_of_many):
    outputs = check_outputs(run("grow_an_expert", folder_of_many))
    assert f"dev:                  MiniLA, exclude_attacks A06: {2 * UTTERANCES - 2} trials" in "".join(
        outputs.values()
    )
    before, after = (load(folder_of_many / name) for name in ("before_A06", "after_A06"))
    assert [len(layer.experts) for _, layer in adapted_sites(after)] == [4] * 8
    assert all(torch.equal(after.state_dict()[name], tensor) for name, tensor in before.state_dict().items())
    (new,) = (folder_of_many / "runs/extend/after_A06/extended/seed_1/scores").glob("*/new.csv")
    assert attacks(new) == {"A06"}


@pytest.mark.slow
def test_leave_one_attack_out(run, folder_of_many):
    *_, (_, matrix) = check_outputs(run("leave_one_attack_out", folder_of_many)).items()
    (held_out,) = (folder_of_many / "runs/without_A04/version_0/scores").glob("*/held_out.csv")
    assert attacks(held_out) == {"A04"}
    for system in ("frozen", "moe_lora"):
        eers = {}
        for attack in ("A04", "A06"):
            (path,) = (folder_of_many / f"runs/unseen_attacks/{system}-without_{attack}/seed_1/scores").glob(
                "*/held*.csv"
            )
            assert attacks(path) == {attack}
            eers[attack] = eer_percent(path)
        row = re.search(rf"^ {system} +\*?([\d.]+) +\*?([\d.]+) ", matrix, re.MULTILINE)
        assert [float(value) for value in row.groups()] == pytest.approx([*eers.values()], abs=6e-3)
    assert (folder_of_many / "unseen/attacks-held_out.svg").is_file()


@pytest.mark.slow
def test_compare_two_systems(run, folder_of_many):
    outputs = check_outputs(run("compare_two_systems", folder_of_many))
    (compared,) = (
        printed for code, printed in outputs.items() if code.startswith("moelora-ad results") and "--comp" in code
    )
    for name in ("in_domain", "out_of_domain"):
        means = []
        for system in ("moe_lora_e3_r8_dense", "frozen"):
            paths = [*(folder_of_many / "runs/two_systems" / system).glob(f"seed_*/scores/*/{name}.csv")]
            assert len(paths) == 2
            means.append(sum(map(eer_percent, paths)) / 2)
        row = re.search(rf"^ {name} +([\d.]+) +([\d.]+) +\*?([-+][\d.]+) \[", compared, re.MULTILINE)
        assert [float(value) for value in row.groups()] == pytest.approx([*means, means[0] - means[1]], abs=6e-3)


def attacks(path: Path) -> set[str]:
    """The attacks in a score file."""
    return set(ScoreTable.read(path).trials.attacks)


def eer_percent(path: Path) -> float:
    table = ScoreTable.read(path)
    return 100 * evaluate(table.scores, table.labels, resamples=0).overall.eer


def test_a_notebook_has_the_cells_of_its_page(tutorials):
    spec = importlib.util.spec_from_file_location("notebooks", PROJECT / "docs/hooks/notebooks.py")
    notebooks = importlib.util.module_from_spec(spec)
    pytest.importorskip("mkdocs", reason="a hook of the site: pip install 'moelora_ad[docs]'")
    spec.loader.exec_module(notebooks)
    page = (TUTORIALS / "new_adapter.md").read_text(encoding="utf-8")
    made = notebooks.notebook(page)["cells"]
    code = [cell for cell in made if cell["cell_type"] == "code"]
    cells = list(tutorials.cells(page))
    assert [cell["source"].splitlines()[-1] for cell in code] == [cell.code.splitlines()[-1] for cell in cells]
    assert code[0]["source"].startswith("%%writefile scaling.py\n")
    assert code[1]["source"].startswith("%%bash\nmoelora-ad inspect")
    assert [bool(cell["outputs"]) for cell in code] == [bool(cell.output) for cell in cells]
    assert "".join(cell["source"] for cell in made if cell["cell_type"] == "markdown").count("```") == 0

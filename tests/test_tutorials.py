"""The tutorials, word for word and in miniature: few utterances, one epoch, from the weights of the packaged model."""

import glob
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from moelora_ad import load
from moelora_ad.inference import Scorer
from moelora_ad.models.saving.packaged import packaged_models

PROJECT = Path(__file__).parents[1]
TUTORIALS = PROJECT / "docs/tutorials"
FIRST = "first_detector"
UTTERANCES = 6  # of each class in each list


@pytest.fixture(scope="module")
def tutorials():
    """The program that runs them."""
    spec = importlib.util.spec_from_file_location("run", TUTORIALS / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quickstart) -> Path:
    """A project's folder, but the lists of its corpora are short, and training is one epoch from trained weights."""
    folder = tmp_path_factory.mktemp("tutorials")
    small = folder / "experiments/quickstart"
    for corpus in sorted((quickstart / "corpus").glob("Mini*")):
        (small / "corpus" / corpus.name / "protocols").mkdir(parents=True)
        (small / "corpus" / corpus.name / "flac").symlink_to(corpus / "flac")
        for protocol in (corpus / "protocols").glob("*.txt"):
            lines = protocol.read_text().splitlines(keepends=True)
            chosen = [
                line
                for label in ("bonafide", "spoof")
                for line in [line for line in lines if line.split()[4] == label][-UTTERANCES:]
            ]
            (small / "corpus" / corpus.name / "protocols" / protocol.name).write_text("".join(chosen))
    (small / "backbone").symlink_to(quickstart / "backbone")
    config = yaml.safe_load((PROJECT / "experiments/quickstart.yaml").read_text(encoding="utf-8"))
    config["trainer"] |= {"max_epochs": 1, "accelerator": "cpu"}
    config["model"]["init_weights"] = str(packaged_models()["mini"])
    (folder / "experiments/quickstart.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def run(tutorials, folder, lightning, monkeypatch):
    """Runs a tutorial in the folder, if that was not done yet; each cell with what it printed."""

    def shell(code: str) -> str:
        printed = []
        for line in code.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line, comments=True)
            assert program == "moelora-ad"
            code, out, err = lightning(*(path for word in words for path in sorted(glob.glob(word)) or [word]))
            assert code == 0, f"{line}: {out}{err}"
            printed.append(out)
        return "".join(printed)

    def call(name: str) -> list:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "path", [*sys.path])
        if name != FIRST and not (folder / "runs" / FIRST).exists():
            call(FIRST)
        return list(tutorials.run((TUTORIALS / f"{name}.md").read_text(encoding="utf-8"), shell))

    return call


def words(text: str) -> set[str]:
    """The words of an output, without its numbers and what it is drawn with."""
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def check_outputs(done: list) -> dict[str, str]:
    """Each cell prints what its page shows, but for the figures; returns the outputs by code."""
    assert done
    for cell, printed in done:
        assert bool(printed) == bool(cell.output), cell.code
        said, shown = words(printed), words(cell.output or "")
        assert len(said & shown) >= 0.6 * len(said), (cell.code, sorted(said - shown))
    return {cell.code: printed for cell, printed in done}


@pytest.mark.slow
def test_first_detector(run, folder):
    outputs = check_outputs(run(FIRST))
    (scored,) = (printed for code, printed in outputs.items() if "Scorer(" in code)
    name, score = re.match(r"(\w+): (-?[\d.]+)", scored).groups()
    model = Scorer.from_pretrained(folder / "first_model")
    assert model(folder / f"experiments/quickstart/corpus/MiniLA/flac/{name}.flac").score == pytest.approx(
        float(score), abs=6e-3
    )


@pytest.mark.slow
def test_score_a_folder(run, folder):
    outputs = check_outputs(run("score_a_folder"))
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
    check_outputs(run("own_corpus"))
    assert len((folder / "calls.csv").read_text().splitlines()) == 1 + 3 * 2 * UTTERANCES
    calibration = load(folder / "own_model").calibration
    assert (calibration["num_bona_fide"], calibration["num_spoof"]) == (UTTERANCES, UTTERANCES)


@pytest.mark.slow
def test_a_new_adapter(run, folder, monkeypatch):
    try:
        check_outputs(run("new_adapter"))
        monkeypatch.chdir(folder)
        own = load("scaling_model", allow=["scaling"]).state_dict()
    finally:
        sys.modules.pop("scaling", None)
    scales = {name: tensor for name, tensor in own.items() if name.endswith(".scale")}
    assert len(scales) == 12
    assert all((scale != 1).any() and torch.allclose(scale, torch.ones(()), atol=0.1) for scale in scales.values())


@pytest.mark.slow
def test_watch_the_experts(run, folder):
    outputs = check_outputs(run("watch_the_experts"))
    *_, last = outputs.values()
    assert last.startswith("3 experts at 16 projections\n")
    gates = [float(number) for number in re.search(r"\[(.*)\]", last)[1].split()]
    assert sum(gates) == pytest.approx(1, abs=2e-3)
    assert (folder / "routing/routing.json").is_file()


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

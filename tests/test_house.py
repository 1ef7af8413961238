"""The order of the package's parts, the rooms: which may import which, and how large files and folders may grow."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import moelora_ad

PACKAGE = Path(moelora_ad.__file__).parent
LONGEST, MOST = 330, 16  # lines in a file, files in a folder

# From the bottom up: a room imports only rooms before it. A longer name is a room inside another one.
ROOMS = (
    *("errors", "formats", "documents", "files", "float64", "torch_internals", "lightning_internals", "lazy"),
    *("adapters", "audio", "corpora"),
    *("evaluation.metrics.equal_error_rate", "evaluation.provenance", "evaluation.score_table", "evaluation.metrics"),
    "runs",
    *("evaluation.score_files", "evaluation.reports", "evaluation"),
    *("models", "data", "configuration"),
    "evaluation.comparison",
    *("training", "inference", "analysis", "sweeps"),
    "cli",
)


def modules() -> dict[str, ast.Module]:
    """The package's modules, by their names without ``moelora_ad.``.

    The package itself is left out, as it imports names when they are asked for (see test_face.py).
    """
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.Module, known: dict[str, ast.Module]) -> Iterator[str]:
    """The package's modules that a module imports, anywhere in its code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{name.name}" for name in node.names]
            names = [name if name.removeprefix("moelora_ad.") in known else str(node.module) for name in inside]
        else:
            continue
        yield from (name.removeprefix("moelora_ad").lstrip(".") for name in names if name.startswith("moelora_ad"))


def room(module: str) -> int:
    """The place of a module's room in the order; the package's name and version are below all rooms."""
    if module in ("", "__main__"):
        return -1 if module == "" else len(ROOMS)
    fitting = [one for one in ROOMS if module == one or module.startswith(f"{one}.")]
    assert fitting, f"{module} is in no room"
    return ROOMS.index(max(fitting, key=len))


def test_imports_run_downwards():
    known = modules()
    wrong = [
        f"{module} imports {other}"
        for module, tree in known.items()
        for other in imported(tree, known)
        if room(other) > room(module)
    ]
    assert not wrong


def test_no_circle():
    known = modules()
    left = {name: {other for other in imported(tree, known) if other in known} for name, tree in known.items()}
    while free := [name for name, others in left.items() if not others - {name}]:
        for name in free:
            del left[name]
        for others in left.values():
            others.difference_update(free)
    assert not left


def test_adapters_know_nothing_of_ours():
    known = modules()
    named = {other for name, tree in known.items() if name.startswith("adapters") for other in imported(tree, known)}
    allowed = {"errors", "documents", "files", "float64", "torch_internals"}
    assert {name for name in named if not name.startswith("adapters")} <= allowed


def test_files_and_folders_stay_small():
    long = {str(path): text.count("\n") for path in PACKAGE.rglob("*.py") if (text := path.read_text("utf-8"))}
    assert not {path: lines for path, lines in long.items() if lines > LONGEST}
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert not {str(folder) for folder in folders if len([*folder.glob("*.py")]) > MOST}


def test_pages_are_templates():
    """HTML is kept in templates/, beside the module that fills it in."""
    tags = re.compile(r"<(html|body|div|p|table|tr|td|style)[ >]")
    assert not [str(path) for path in PACKAGE.rglob("*.py") if tags.search(path.read_text(encoding="utf-8"))]


def test_what_needs_no_torch_does_not_import_it():
    """Corpora, figures and the folders of runs do not need torch."""
    free = [name for name in modules() if name.partition(".")[0] in ("corpora", "evaluation", "runs")]
    free.remove("evaluation.metrics.torchmetrics")
    free.remove("corpora.checking")  # opens audio files
    lines = [f"import moelora_ad.{name}" for name in free]
    program = "\n".join([*lines, "import sys", "assert not {'torch', 'lightning', 'transformers'} & {*sys.modules}"])
    subprocess.run([sys.executable, "-c", program], check=True)


# What a newcomer looks for, the file with a fitting name, and a line of code in it.
GUESSES = {
    "checkpoint writing": ("training/checkpoint_writing.py", "class WholeCheckpointIO"),
    "which checkpoints are kept": ("training/callbacks/checkpoints.py", "class WholeCheckpoint"),
    "early stopping": ("training/callbacks/early_stopping.py", "class LastingEarlyStopping"),
    "loss that is not finite": ("training/callbacks/divergence.py", "class LossCheck"),
    "random draws of the data path": ("audio/randomness.py", "def keyed_generator"),
    "DataLoader workers": ("data/workers.py", "def begin_worker"),
    "RawBoost": ("audio/augmentation/rawboost.py", "class RawBoost"),
    "a truncated MP3": ("audio/mpeg.py", "def stretches_of"),
    "reading a zip": ("corpora/storage/archives.py", "class ZipArchive"),
    "FakeAVCeleb's trial lists": ("corpora/fakeavceleb.py", "TrialsList = "),
    "gate noise": ("adapters/gate.py", "noise"),
    "which projections are adapted": ("adapters/injection.py", "def inject"),
    "AASIST": ("models/heads/aasist.py", "class AASIST"),
    "XLSR-53's input normalisation": ("models/backbones/waveform.py", "def _normalize"),
    "saving a model": ("models/saving/model_folder.py", "def save_pretrained"),
    "a published checkpoint": ("models/saving/public/importing.py", "def read_public"),
    "ONNX": ("models/saving/onnx_export.py", "def export_onnx"),
    "EER": ("evaluation/metrics/equal_error_rate.py", "def equal_error_rate"),
    "bootstrap intervals": ("evaluation/metrics/intervals.py", "def bootstrap"),
    "DET plot": ("evaluation/reports/plots.py", "def det_plot"),
    "score-file formats": ("evaluation/score_files/formats.py", "FORMATS"),
    "run.json": ("runs/record.py", "class RunRecord"),
    "dropping experts": ("analysis/pruning.py", "def prune_experts"),
    "merging experts": ("analysis/merging.py", "def merge_experts"),
    "calibration": ("evaluation/metrics/calibration.py", "def fit_calibration"),
    "the W&B artefact": ("training/callbacks/wandb.py", "Artifact"),
    "SLURM requeue": ("sweeps/slurm.py", "def _requeue"),
    "packaged configurations by name": ("configuration/packaged.py", "def configuration_file"),
    "exit codes": ("cli/main.py", "exit code"),
    "the page and the API": ("inference/serve/application.py", '"/score"'),
    "limits of an upload": ("inference/serve/uploads.py", "UPLOAD_SECONDS"),
    "GPU of a local sweep's run": ("sweeps/gpus.py", "class Gpus"),
}


@pytest.mark.parametrize(("behaviour", "place"), GUESSES.items())
def test_a_newcomer_finds_it_by_name(behaviour, place):
    path, words = place
    assert words in (PACKAGE / path).read_text(encoding="utf-8"), behaviour

"""The source distribution and the package installed from it: the quickstart runs from an empty folder."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
EXTRAS = ("indexed_gzip", "ratarmountcore", "submitit", "pyarrow", "onnx", "onnxruntime", "fastapi", "uvicorn")

pytestmark = pytest.mark.slow


def done(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed; return its standard output."""
    ended = subprocess.run(
        [*map(str, command)], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stdout[-2_000:] + ended.stderr[-2_000:]
    return ended.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The path of the source distribution."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    done(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=PROJECT)
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory) -> Path:
    """A folder with the package alone, built from the source distribution and installed by pip."""
    folder = tmp_path_factory.mktemp("installed")
    options = ("--no-deps", "--no-build-isolation", "--no-compile", "--target", folder)
    done(sys.executable, "-m", "pip", "install", *options, source, cwd=folder)
    return folder / "moelora_ad"


def test_the_source_has_what_its_tests_need(source):
    with tarfile.open(source) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    folders = ("tests", "examples", "experiments", "benchmarks", "docs", "moelora_ad")
    found = (path for folder in folders for path in (PROJECT / folder).rglob("*") if path.is_file())
    wanted = {path.relative_to(PROJECT).as_posix() for path in found if "__pycache__" not in path.parts}
    documents = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "Dockerfile"}
    assert wanted | documents | {"pyproject.toml"} <= names


def test_the_package_has_what_is_needed_to_run_and_no_more(installed):
    there = {path.relative_to(installed).as_posix(): path for path in installed.rglob("*") if path.is_file()}
    experiments = PROJECT / "experiments"
    needed = [*experiments.rglob("*.yaml"), *(experiments / "quickstart" / "corpus").rglob("*")]
    wanted = {f"experiments/{path.relative_to(experiments).as_posix()}": path for path in needed if path.is_file()}
    assert {name for name in there if name.startswith("experiments/")} == wanted.keys()
    ours = PROJECT / "moelora_ad"
    parts = (path for path in ours.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    wanted |= {path.relative_to(ours).as_posix(): path for path in parts}
    assert there.keys() == wanted.keys()
    assert all(there[name].read_bytes() == path.read_bytes() for name, path in wanted.items())
    assert [path.name for path in installed.parent.iterdir() if path.suffix != ".dist-info"].count("experiments") == 0


def test_the_quickstart_runs_in_an_empty_folder_without_any_extra(installed, tmp_path):
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r})); "
        "from moelora_ad.cli.main import main; sys.exit(main())"
    )
    options = ("--trainer.accelerator=cpu", "--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false")
    command = ("fit", "--config", "quickstart", "--config", "adapters/lora_r8", *options)
    out = done(sys.executable, "-c", program, *command, cwd=tmp_path, PYTHONPATH=str(installed.parent))
    assert str(installed / "packaged" / "mini" / "backbone") in out.replace("\n", "")
    assert [*tmp_path.iterdir()] == []

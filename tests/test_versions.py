"""The versions that pyproject.toml promises, and those that a run with the lowest versions installs."""

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, for which pytest installs the same
    import tomli as tomllib

TESTS = Path(__file__).parent
USED_BY_PRIVATE_NAMES = ("jsonargparse", "lightning", "torch", "torchmetrics", "transformers")


def requirements() -> dict[str, Requirement]:
    """The requirements to run and to test, by name."""
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    used = ("archives", "docs", "onnx", "parquet", "serve", "slurm", "test")
    lines = [*project["dependencies"], *(line for extra in used for line in extras[extra])]
    found = [Requirement(line) for line in lines]
    return {one.name: one for one in found if one.name != project["name"]}


def lower(requirement: Requirement) -> Version:
    [bound] = [one.version for one in requirement.specifier if one.operator == ">="]
    return Version(bound)


def test_the_lowest_versions_are_the_bounds():
    lines = [line for line in (TESTS / "lowest.txt").read_text().splitlines() if not line.startswith("#")]
    lowest = {name: Version(version) for name, version in (line.split("==") for line in lines)}
    needed = requirements()
    assert lowest.keys() == needed.keys()
    for name, version in lowest.items():
        # A bound such as 2024.6 means the first release of that version.
        assert needed[name].specifier.contains(version)
        bound = lower(needed[name])
        assert version.release[: len(bound.release)] == bound.release
    assert lines == sorted(lines, key=lambda line: re.split("==", line)[0])


def test_libraries_that_are_used_by_private_names_have_an_upper_bound():
    for name in USED_BY_PRIVATE_NAMES:
        assert any(one.operator == "<" for one in requirements()[name].specifier), name


def test_who_installs_pytorch_first_gets_a_version_that_is_kept():
    [bound] = [one.version for one in requirements()["torch"].specifier if one.operator == "<"]
    for name in ("README.md", "docs/start/install.md", "Dockerfile"):
        text = (TESTS.parent / name).read_text(encoding="utf-8")
        assert re.findall(r"install .*\btorch(?!audio)(?:>=[\d.]+,)?(<[\d.]+)?", text) == [f"<{bound}"], name

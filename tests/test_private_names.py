"""Private names of each library are used in one file only, and tests check what they do."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import moelora_ad

PACKAGE = Path(moelora_ad.__file__).parent
HOMES = {
    "torch_internals.py",
    "configuration/jsonargparse_internals.py",
    "evaluation/metrics/torchmetrics.py",
    "models/transformers_internals.py",
    "lightning_internals.py",
}
PYTHON = {"_asdict", "_exit", "_fields", "_make", "_replace"}  # documented names
ALLOWED = {("data/workers.py", "_on_queue_feeder_error")}  # Python's own hook, made to be replaced; there is no other
LIBRARIES = ("jsonargparse", "lightning", "torch", "torchmetrics", "transformers")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names(trees: list[ast.Module]) -> set[str]:
    """Private names that the package defines."""
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


def used(tree: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """Private names of other packages in a module: imported, read as attributes, or named in a text for ``getattr``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not str(node.module).startswith("moelora_ad"):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute):
            names = [node.attr] if node.attr not in own else []
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            names = [part.value for part in node.args[1:2] if isinstance(part, ast.Constant)]
        else:
            continue
        yield from ((node.lineno, name) for name in names if is_private(name) and name not in PYTHON)


def of_bases(kind: type, names: set[str]) -> set[str]:
    """The given names that a library's class above this one has itself, or sets in its methods."""
    found = set()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in LIBRARIES:
            try:
                source = inspect.getsource(base)
            except (OSError, TypeError):  # a class made in C
                source = ""
            found |= names & (vars(base).keys() | set(re.findall(r"\bself\.(_\w+)", source)))
    return found


def inherited(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Private names that a class overrides or reads of itself, and that belong to a library's class above it."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or not node.bases:
            continue
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        names = {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
        names |= {inner.name for inner in ast.walk(node) if isinstance(inner, ast.FunctionDef)}
        kind = getattr(importlib.import_module(module), node.name)
        yield from ((node.lineno, name) for name in of_bases(kind, {name for name in names if is_private(name)}))


def found_in(package: Path) -> list[str]:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in package.rglob("*.py")}
    own = own_names([*trees.values()])
    lines = []
    for path, tree in trees.items():
        place = path.relative_to(package).as_posix()
        if place in HOMES:
            continue
        for line, name in (*used(tree, own), *inherited(path, tree)):
            if (place, name) not in ALLOWED:
                lines.append(f"{place}:{line}: {name}")
    return sorted(lines)


def test_private_names_of_libraries_stand_in_one_file_for_each():
    assert found_in(PACKAGE) == []


@pytest.mark.parametrize("place", sorted(HOMES))
def test_every_such_file_has_its_test(place):
    name = Path(place).stem
    assert [*(Path(__file__).parent / Path(place).parent).glob(f"test_{name}.py")]


def test_what_would_be_found():
    lines = ["from torch._sub import x", "import torch._C", "a._b", "self._own", "getattr(a, '_c')", "self._d = 1"]
    tree = ast.parse("\n".join([*lines, "row._asdict()"]))
    assert [name for _, name in used(tree, own_names([tree]) | {"_own"})] == ["_sub", "_C", "_b", "_c"]
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Own(ModelCheckpoint):
        pass

    assert of_bases(Own, {"_save_last_checkpoint", "_last_checkpoint_saved", "_mine"}) == {
        "_save_last_checkpoint",
        "_last_checkpoint_saved",
    }

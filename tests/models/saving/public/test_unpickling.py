"""Untrusted files give tensors and plain values, or one line; nothing in them is run."""

import argparse
import collections
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moelora_ad.errors import InputError
from moelora_ad.models.saving.public.importing import read_public
from moelora_ad.models.saving.public.unpickling import Opaque, field, read_file


def one_line(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_public(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


class Runs:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("call", "named"),
    [
        ((os.system, "touch {}"), "posix.system"),
        ((eval, "open('{}', 'w')"), "eval"),
        ((Path.touch, Path("{}")), "getattr|Path"),
        ((torch.load, "{}"), "torch.serialization.load"),
        ((argparse.FileType("w"), "{}"), "argparse.FileType"),
    ],
)
def test_code_is_named_and_not_run(call, named, legacy, tmp_path):
    function, argument = call
    harmed = tmp_path / "harmed"
    argument = type(argument)(str(argument).format(harmed))
    content = {"model": {"w": torch.zeros(2)}, "extra_state": Runs(function, argument)}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    told = one_line(tmp_path / "x.pt")
    assert "contains code" in told
    assert any(name in told for name in named.split("|"))
    assert not harmed.exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    assert "contains code (torch.nn.modules.linear.Linear)" in one_line(tmp_path / "x.pt")


ABSENT = {
    "DictConfig": "omegaconf.dictconfig",
    "AnyNode": "omegaconf.nodes",
    "Dictionary": "fairseq.data.dictionary",
}
"""Classes of packages that need not be installed."""


def test_what_published_files_hold_beside_tensors(tmp_path, monkeypatch):
    classes = {name: type(name, (), {"__module__": module}) for name, module in ABSENT.items()}
    for name, module in ABSENT.items():
        for count in range(module.count(".") + 1):
            above = ".".join(module.split(".")[: count + 1])
            monkeypatch.setitem(sys.modules, above, sys.modules.get(above) or types.ModuleType(above))
        setattr(sys.modules[module], name, classes[name])

    def holding(name, **state):
        made = classes[name]()
        made.__dict__.update(state)
        return made

    def node(value):
        return holding("AnyNode", _val=value, _parent=None)

    def options(**content):
        return holding("DictConfig", _content=content, _parent=None)

    lists = collections.defaultdict(list)
    lists["a"].append(1)
    content = {
        "args": argparse.Namespace(encoder_layers=3, nested=argparse.Namespace(normalize=True)),
        "cfg": options(model=options(encoder_layers=node(4)), task=options(normalize=node(False))),
        "extra_state": {"best": np.float64(0.5), "curve": np.arange(3.0), "at": Path("x"), "lists": lists},
        "task_state": holding("Dictionary", symbols=["a"]),
        "model": collections.OrderedDict(w=torch.ones(2)),
    }
    torch.save(content, tmp_path / "x.pt")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("omegaconf", "fairseq")]:
        monkeypatch.delitem(sys.modules, name)
    found = read_file(tmp_path / "x.pt")
    assert torch.equal(found["model"]["w"], torch.ones(2))
    assert field(found, "args", "encoder_layers") == 3
    assert field(found, "args", "nested", "normalize") is True
    assert field(found, "cfg", "model", "encoder_layers") == 4
    assert field(found, "cfg", "task", "normalize") is False
    assert field(found, "cfg", "model", "absent", "deeper") is None
    assert type(found["extra_state"]["best"]) is type(found["task_state"]) is Opaque
    assert found["extra_state"]["lists"] == {"a": [1]}
    assert not [name for name in sys.modules if name.partition(".")[0] in ("omegaconf", "fairseq")]


def test_tensors_that_are_more_than_the_file(tmp_path):
    torch.save({"LL.weight": torch.zeros(1).expand(100_000, 100_000)}, tmp_path / "x.pt")
    assert "more values than fit into it" in one_line(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"hello" * 50, pickle.dumps({"a": 1}), b"\x80\x02}q\x00.", pickle.dumps([torch.zeros(1)] * 3)],
)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_files_of_other_kinds(content, ending, tmp_path):
    (tmp_path / f"x.{ending}").write_bytes(content)
    one_line(tmp_path / f"x.{ending}")


def test_places_that_are_no_files(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        read_public(tmp_path / "x.pt")
    assert "has no weights" in one_line(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    assert "not a regular file" in one_line(tmp_path / "pipe.pt")
    for name in ("a.pt", "b.pth"):
        (tmp_path / name).touch()
    (tmp_path / "pipe.pt").unlink()
    assert "several files of weights, name one: a.pt, b.pth" in one_line(tmp_path)


@pytest.fixture(scope="module")
def published(layouts, xlsr, tmp_path_factory) -> bytes:
    path = layouts.fairseq_file(tmp_path_factory.mktemp("published") / "x.pt", xlsr)
    read_public(path)
    return path.read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_one_line_or_none_the_worse(published, tmp_path, data):
    changed = bytearray(published)
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(changed) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if changed:
            changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "x.pt"
    path.write_bytes(changed)
    try:
        read_public(path)
    except InputError as error:
        told = str(error)
    else:  # the change is in padding between parts, or in a name that the directory at the end repeats
        told = ""
    assert "\n" not in told
    assert len(told) <= 2_000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_pickle_with_changed_bytes_and_right_check_sums(published, tmp_path, data):
    """An attacker can write matching checksums, too."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(published)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in parts if name.endswith("data.pkl"))
    changed = bytearray(parts[name])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, bytes(changed) if part == name else content)
    try:
        read_public(path)
    except InputError as error:
        told = str(error)
    else:  # the change is in an option that is not read
        told = ""
    assert "\n" not in told

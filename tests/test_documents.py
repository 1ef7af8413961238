"""YAML and JSON that would fill the memory, or that mean other than they seem to, give one line at once."""

import json
import re
import tracemalloc

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.documents import DocumentError, check_yaml, read_json, read_yaml
from moelora_ad.errors import InputError

NINES = "9" * 400
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60))
LONG = "a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 1_000) + "]\n"


def refusal(read, path) -> str:
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert len(line.splitlines()) == 1
    assert len(line) < 500
    return line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "characters with what aliases repeat"),
        (MERGES, "characters with what aliases repeat"),
        (LONG, "line 2: more than 1,048,576 characters with what aliases repeat"),
        ("a: &a [*a]", "line 1: the alias a refers to nothing before it, or to itself"),
        ("a: " + "[" * 200 + "]" * 200, "line 1: nested more than 100 deep"),
        ("a: " + "[" * 100_000, "deep|nesting depth"),
        ("- " * 5_000, "line 1: nested more than 100 deep"),
        ("a: " + "{b: " * 5_000, "deep"),
        (f"a:\n  b: {NINES}", "line 2: a number of 400 characters"),
        (f"a: -{NINES}.0", "line 1: a number of 401 characters|line 1: a number of 403 characters"),
        ("a: 0x" + "f" * 5_000, "line 1: a number of 5,002 characters"),
        ("a: " + "1:" * 5_000 + "1", "line 1: a number of 10,001 characters"),
        ("a: 18446744073709551616", "line 1: the whole number 18446744073709551616 has more than 64 bits"),
        ("a: 2026-13-45", "line 1: '2026-13-45' is not a valid timestamp"),
        ("a: !!int ''", "line 1: '' is not a valid int"),
        ("a: !!float '_'", "line 1: '_' is not a valid float"),
        ("a: !!bool maybe", "line 1: 'maybe' is not a valid bool"),
        ("a: !!timestamp x", "line 1: 'x' is not a valid timestamp"),
        ("a: b\non: 1", "line 2: the key 'on' is read as bool: put it in quotes"),
        ("a: {yes: 1}", "the key 'yes' is read as bool"),
        ("a: {~: 1}", "the key '~' is read as null"),
        ("a: {1.5: 1}", "the key '1.5' is read as float"),
        ("a: {2026-01-01: 1}", "the key '2026-01-01' is read as timestamp"),
        ("1: b", "has the key 1, which is not text"),
        ("? [a]\n: b", "a key must be text, not a list or a mapping"),
        ("a: &k on\n*k : b", "a key must be text, not an alias"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("a: '\x07'", "is not YAML"),
        ("# " + "x" * 2**20, "larger than 1,048,576 bytes"),
    ],
)
def test_faulty_yaml_is_one_line(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    line = refusal(read_yaml, path)
    assert any(word in line for word in words.split("|"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('{"a": ' + NINES + "}", "a whole number of 400 digits"),
        ('{"a": [-' + NINES + "]}", "a whole number of 401 digits|a whole number of 400 digits"),
        ('{"a": ' + "9" * 5_000 + "}", "is not JSON"),
        ("[" * 200 + "]" * 200, "nested more than 100 deep"),
        ("[" * 100_000, "is not JSON"),
        (" " * (2**22 + 1), "larger than 4,194,304 bytes"),
    ],
)
def test_faulty_json_is_one_line(tmp_path, text, words):
    path = tmp_path / "run.json"
    path.write_text(text)
    line = refusal(read_json, path)
    assert any(word in line for word in words.split("|"))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "x").write_bytes(b"a: \xff")
    assert "is not YAML" in refusal(read_yaml, tmp_path / "x")
    assert "is not JSON" in refusal(read_json, tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "none")


NAMES = st.text("abcxyz_", min_size=1, max_size=8).map(lambda name: f"k{name}")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64) + 1, 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(NAMES | st.integers(0, 99), inside, max_size=4),
)


@settings(deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=4), st.integers(2, 30))
def test_what_is_within_bounds_is_read_as_pyyaml_reads_it(tmp_path_factory, content, times):
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    text = yaml.safe_dump({"whole": [content] * times})  # written with aliases
    path.write_text(text, encoding="utf-8")
    assert read_yaml(path) == yaml.safe_load(text)


def error_of(read, text: str) -> Exception | None:
    try:
        read(text)
    except (yaml.YAMLError, ValueError) as error:
        return error
    return None


@settings(deadline=None)
@given(st.text(max_size=60) | st.text("&*a:[]{}<-\n ,1'\"!?|>~on", max_size=40))
def test_any_text_that_pyyaml_reads_is_read_or_refused_with_its_line(text):
    read, checked = (error_of(one, text) for one in (yaml.safe_load, check_yaml))
    if isinstance(checked, DocumentError):
        assert re.match(r"line \d: ", str(checked))
    elif checked is not None:
        assert read is not None


@given(st.recursive(st.none() | st.integers(-(2**63), 2**63) | st.text(), lambda s: st.lists(s, max_size=3)))
def test_json_within_bounds_is_read_as_it_is(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "content.json"
    path.write_text(json.dumps(content))
    assert read_json(path) == content


def test_a_key_that_stands_twice_in_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": {"b": 1, "c": 2, "b": 3}}')
    with pytest.raises(InputError, match=r"a\.json: is not used: the key 'b' occurs twice in one object"):
        read_json(path)
    path.write_text('{"a": {"b": 1}, "b": {"b": 1}}')
    assert read_json(path) == {"a": {"b": 1}, "b": {"b": 1}}

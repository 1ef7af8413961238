"""A user's mistake gives one line, whatever the faulty file holds."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import moelora_ad
from moelora_ad.errors import InputError, counted


@given(st.text(st.characters(codec=None), max_size=50))
def test_a_message_is_one_printable_line(text):
    message = str(InputError.at("list.csv", f"no column {text}", line=1))
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    if text.isprintable():
        assert message.endswith(text)


@pytest.mark.parametrize(("text", "shown"), [("a\x0bb", "a\\x0bb"), ("\x1b[2J", "\\x1b[2J"), ("é", "é")])
def test_control_characters_are_shown_as_escapes(text, shown):
    assert str(InputError(text)) == shown


@pytest.mark.parametrize("content", ["a" * 3_000_000, "\0" * 3_000_000, "\x1b[2J\n" * 2_000_000])
def test_a_message_that_quotes_a_huge_file_keeps_its_beginning_and_its_end(content):
    message = str(InputError.at("scores.csv", f"no column 'score'; the header has {content}; name one", line=1))
    assert len(message) <= 2_000
    assert message.startswith("scores.csv, line 1: no column 'score'; the header has ")
    assert message.endswith("; name one")
    assert "characters are left out" in message
    assert str(InputError(message)) == message  # another process may raise the error again


@pytest.mark.parametrize(("length", "cut"), [(1_999, False), (2_000, False), (2_001, True)])
def test_a_message_is_cut_only_where_it_is_too_long(length, cut):
    message = str(InputError("x" * length))
    assert (message != "x" * length) == cut
    assert len(message) <= 2_000


@pytest.mark.parametrize(
    ("number", "words", "shown"),
    [
        (0, ("run",), "0 runs"),
        (1, ("run",), "1 run"),
        (1_200, ("score file",), "1,200 score files"),
        (1, ("batch", "batches"), "1 batch"),
        (2, ("batch", "batches"), "2 batches"),
    ],
)
def test_numbers_of_things(number, words, shown):
    assert counted(number, *words) == shown


def test_there_is_one_way_to_count_things_in_words():
    by_hand = re.compile(r"""["']s["'] ?\* ?\(|["']["'] if [^{}]{1,40} == 1 else ["'](s|es)["']""")
    package = Path(moelora_ad.__file__).parent
    found = [path for path in package.rglob("*.py") if by_hand.search(path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(package)) for path in found] == []

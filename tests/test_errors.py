"""A user's mistake is one line, whatever the faulty file held."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelora_ad.errors import InputError


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
    assert str(InputError(message)) == message  # as an error that is raised again by another process


@pytest.mark.parametrize(("length", "cut"), [(1_999, False), (2_000, False), (2_001, True)])
def test_a_message_is_cut_only_where_it_is_too_long(length, cut):
    message = str(InputError("x" * length))
    assert (message != "x" * length) == cut
    assert len(message) <= 2_000

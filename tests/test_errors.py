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


def test_a_long_word_of_a_faulty_file_leaves_place_and_advice():
    message = str(InputError.at("list.csv", f"no column {'x' * 10**7}; give one", line=1))
    assert message.startswith("list.csv, line 1: no column xx")
    assert message.endswith("xx; give one")
    assert len(message) < 3_000

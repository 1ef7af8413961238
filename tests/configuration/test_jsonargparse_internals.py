"""What is used of jsonargparse by a private name: what it must do."""

import random
from contextlib import suppress

import pytest
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from moelora_ad.configuration.jsonargparse_internals import settings_restored


def refusal() -> str:
    """jsonargparse's error for a class of the package ``random`` that does not exist."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=BaseException)
    with pytest.raises(ArgumentError) as error:
        parser.parse_object({"source": {"class_path": "random.Random"}})
    return str(error.value)


def test_what_was_denied_in_the_block_is_not_denied_after_it():
    before = refusal()
    assert "is not allowed" not in before
    with settings_restored():
        set_parsing_settings(import_path_denylist=[random.__name__])
        assert "Importing 'random.Random' is not allowed, denied by the 'random' entry" in refusal()
    assert refusal() == before


def test_settings_come_back_after_an_error():
    before = refusal()
    with suppress(KeyError), settings_restored():
        set_parsing_settings(import_path_denylist=["*"])
        raise KeyError
    assert refusal() == before

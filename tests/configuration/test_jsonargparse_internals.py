"""Uses of jsonargparse's private names, and what they must do."""

import random
from contextlib import suppress

import pytest
from jsonargparse import ArgumentError, ArgumentParser, _typehints, set_parsing_settings

from moelora_ad.configuration.jsonargparse_internals import begin_anew, parser_of, settings_restored


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


class Named:
    def __init__(self, name: str = "none"):
        self.name = name


class Animal(Named):
    pass


class Cat(Animal):
    pass


class Dog(Animal):
    pass


class Plant(Named):
    pass


class Moss(Plant):
    pass


def test_one_kind_begins_anew_and_others_keep_what_classes_share(monkeypatch):
    name = "discard_init_args_on_class_path_change"
    monkeypatch.setattr(_typehints, name, getattr(_typehints, name))  # restored after this test
    begin_anew(Animal)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--animal", type=Animal)
    parser.add_argument("--plant", type=Plant)
    first = {
        "animal": {"class_path": f"{__name__}.Cat", "init_args": {"name": "Tom"}},
        "plant": {"class_path": f"{__name__}.Plant", "init_args": {"name": "Rose"}},
    }
    changed = {"animal": f"{__name__}.Dog", "plant": f"{__name__}.Moss"}
    for found in (
        parser.parse_object({key: {"class_path": path} for key, path in changed.items()}, parser.parse_object(first)),
        parser.parse_args([f"--{key}={path}" for key, path in changed.items()], namespace=parser.parse_object(first)),
    ):
        assert (found.animal.class_path, found.animal.init_args.name) == (f"{__name__}.Dog", "none")
        assert (found.plant.class_path, found.plant.init_args.name) == (f"{__name__}.Moss", "Rose")


def test_the_parser_of_a_command():
    above, of_command = ArgumentParser(), ArgumentParser()
    above.add_subcommands().add_subcommand("draw", of_command)
    assert parser_of("draw", above) is of_command

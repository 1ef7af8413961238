"""Mistakes in one line: the whole line for each kind of message of jsonargparse, argparse and Python.

The wording is theirs: where a new version words a message differently, the line here changes with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from jsonargparse.typing import PositiveInt

from moelora_ad.configuration.parser import OneLineParser
from moelora_ad.configuration.trust import imports_limited

HERE = __name__


class Shape:
    """A base class."""


class Circle(Shape):
    def __init__(self, radius: int = 1, style: Literal["thin", "thick"] | None = None) -> None:
        self.radius = radius


class Square(Shape):
    def __init__(self, side: float = 1.0, inner: Shape | None = None) -> None:
        self.side = side


def circle() -> Shape:
    return Circle()


@dataclass
class Drawing:
    shape: Shape | None = None
    either: Circle | Square | None = None
    number: int = 1
    kind: Literal["round", "square"] | int = "round"
    size: PositiveInt | None = None


def parser(**arguments: Any) -> OneLineParser:
    made = OneLineParser(prog="draw", **arguments)
    made.add_class_arguments(Drawing, "drawing")
    return made


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that returns the error line of a command, without its prefix."""

    def call(*arguments: str, parse: Callable[[OneLineParser], Any] | None = None) -> str:
        with pytest.raises(SystemExit) as stop:
            parse(parser()) if parse else parser().parse_args([*arguments])
        printed = capsys.readouterr()
        assert stop.value.code == 2
        assert printed.out == ""
        assert printed.err.startswith("draw: error: ")
        assert printed.err.count("\n") == 1
        return printed.err.removeprefix("draw: error: ").removesuffix("\n")

    return call


def test_an_option_and_a_key_that_are_not_known(line):
    assert line("--drawing.numbr=1") == "unknown option --drawing.numbr; did you mean --drawing.number?"
    assert line("--drawing.numbe=1") == "unknown option --drawing.numbe; did you mean --drawing.number?"
    assert line("--print_cnfig") == "unknown option --print_cnfig; did you mean --print_config?"
    given = {"drawing": {"numbr": 1}}
    told = line(parse=lambda one: one.parse_object(given))
    assert told == "unknown key 'drawing.numbr'; did you mean 'drawing.number'?"


def test_a_key_of_a_verb_that_is_not_known(capsys):
    above = OneLineParser(prog="program")
    verbs = above.add_subcommands()
    verbs.add_subcommand("draw", parser())
    with pytest.raises(SystemExit):
        above.parse_object({"subcommand": "draw", "draw": {"drawing": {"numbr": 1}}})
    error = capsys.readouterr().err
    assert error == "program draw: error: unknown key 'drawing.numbr'; did you mean 'drawing.number'?\n"
    with pytest.raises(SystemExit):
        above.parse_args(["draw", "--drawing.numbe=1"])
    error = capsys.readouterr().err
    assert error == "program draw: error: unknown option --drawing.numbe; did you mean --drawing.number?\n"


def test_an_argument_and_a_class_that_are_not_known(line):
    told = line(f"--drawing.shape={HERE}.Circle", "--drawing.shape.raduis=2")
    assert told == f"drawing.shape: {HERE}.Circle has no argument 'raduis'; did you mean 'radius'?"
    told = line(f"--drawing.shape={HERE}.Cirle")
    assert told == f"drawing.shape: {HERE} has no 'Cirle'; did you mean 'Circle'?"


def test_a_class_within_a_class(line):
    inner = {"class_path": f"{HERE}.Circle", "init_args": {"style": "thik"}}
    given = {"class_path": f"{HERE}.Square", "init_args": {"inner": inner}}
    told = line(parse=lambda one: one.parse_object({"drawing": {"shape": given}}))
    within = f"drawing.shape: {HERE}.Square: inner: {HERE}.Circle: "
    assert told == within + "style: 'thik' is not one of: thin, thick, null; did you mean 'thick'?"


def test_a_function_where_a_class_belongs(line):
    assert line(f"--drawing.shape={HERE}.circle") == f"drawing.shape: {HERE}.circle is a function: give a class"


def test_a_package_that_is_not_trusted(line):
    with imports_limited(["moelora_ad"]):
        told = line(f"--drawing.shape={HERE}.Circle")
        package = HERE.partition(".")[0]
        assert told == (
            f"drawing.shape: {HERE}.Circle is code from outside moelora_ad: if you trust it, name its package, "
            f"--allow {package} (in Python allow=['{package}'])"
        )
        assert line("--drawing.shape=os.system") == "drawing.shape: os.system cannot be named by a configuration"


def test_a_value_that_fits_none_of_several_types(line):
    told = line("--drawing.kind=rund")
    assert told == "drawing.kind: 'rund' is not one of: round, square, whole number; did you mean 'round'?"


def test_a_value_of_the_wrong_type(line):
    assert line("--drawing.number=many") == "drawing.number: Expected a <class 'int'>. Got value: many"


def test_what_a_type_says_itself(line):
    told = line("--drawing.size=-3")
    assert told == "drawing.size: Not of type PositiveInt: does not conform to restriction v>0"

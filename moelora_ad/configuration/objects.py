"""YAML to objects: parsing and building parts of configurations, for every command that is not Lightning's."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from jsonargparse import ArgumentError, Namespace

from moelora_ad.configuration.files import part_of, read_configuration
from moelora_ad.configuration.parser import OneLineParser, explain
from moelora_ad.configuration.trust import check_made_later, imports_limited
from moelora_ad.errors import InputError


def parse_parts(
    parser: OneLineParser,
    paths: Sequence[str],
    parts: Mapping[str, Collection[str] | None],
    allow: Collection[str] | None = (),
) -> Namespace:
    """Parse and check parts of configurations, with defaults for what they leave out; nothing is built.

    Args:
        parser: a parser that knows the parts, and raises its errors (``exit_on_error=False``).
        paths: the files, as for fit: later ones change earlier ones.
        parts: names such as ``model``, each with the fields of that part that are used; None for all.
        allow: packages besides ours whose classes may be named; None for all that `imports_limited` does not deny.

    Raises:
        InputError: a file cannot be read, or a part is faulty.
    """
    parsed = parser.get_defaults()
    for path in paths:
        config = read_configuration(path)
        content = {name: part_of(config, name, path) for name in parts}
        for name, fields in parts.items():
            if fields is not None:
                content[name] = {field: content[name][field] for field in fields if field in content[name]}
        with imports_limited(allow), _explained([path], parser):
            parsed = parser.parse_object(content, parsed)
    if "model" in parts:
        check_made_later(parsed.model)
    return parsed


def instantiate(
    parser: OneLineParser,
    parsed: Namespace,
    paths: Sequence[str],
    allow: Collection[str] | None = (),
    groups: bool = True,
) -> Namespace:
    """Build the objects that were parsed.

    Args:
        parser: the parser that was used.
        parsed: the result of `parse_parts`.
        paths: the files, for messages.
        allow: as for `parse_parts`.
        groups: whether a part that is a class is built; otherwise only its arguments are.

    Raises:
        InputError: an object cannot be built.
    """
    with imports_limited(allow), _explained(paths, parser):
        return parser.instantiate(parsed, instantiate_groups=groups)


@contextmanager
def _explained(paths: Sequence[str], parser: OneLineParser) -> Iterator[None]:
    try:
        yield
    except (ArgumentError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"{', '.join(paths)}: {explain(str(error), parser)}") from None

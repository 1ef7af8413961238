"""The data of an experiment without its model."""

from collections.abc import Collection, Mapping, Sequence

from jsonargparse import ArgumentError

from moelora_ad.configuration.objects import instantiate, parse_parts
from moelora_ad.configuration.parser import OneLineParser, explain
from moelora_ad.configuration.trust import imports_limited
from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.errors import InputError


def data_of(
    paths: Sequence[str], allow: Collection[str] | None = (), options: Mapping[str, str] | None = None
) -> AudioDeepfakeDataModule:
    """The data module that the part ``data`` of configurations describes; no corpus is read yet.

    Args:
        paths: of the files, as for fit: later ones change earlier ones.
        allow: packages besides ours whose classes may be named; None for all, as fit does.
        options: values by dotted names that begin with ``data.``, over those of the files.

    Raises:
        InputError: a file cannot be read, or the part or an option is faulty.
    """
    parser = OneLineParser(exit_on_error=False)
    parser.add_class_arguments(AudioDeepfakeDataModule, "data")
    parsed = parse_parts(parser, paths, {"data": None}, allow)
    if options:
        try:
            with imports_limited(allow):
                parsed = parser.parse_args([f"--{name}={value}" for name, value in options.items()], namespace=parsed)
        except (ArgumentError, ValueError, TypeError) as error:
            raise InputError(explain(str(error), parser)) from None
    data: AudioDeepfakeDataModule = instantiate(parser, parsed, paths, allow).data
    return data

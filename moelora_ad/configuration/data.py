"""The corpora of configurations, without a detector."""

from collections.abc import Collection, Mapping, Sequence

from jsonargparse import ArgumentError

from moelora_ad.audio import Excerpt
from moelora_ad.configuration.files import read_configuration
from moelora_ad.configuration.objects import instantiate, parse_parts
from moelora_ad.configuration.parser import OneLineParser, explain
from moelora_ad.configuration.trust import imports_limited
from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.errors import InputError


def data_of(
    paths: Sequence[str],
    allow: Collection[str] | None = (),
    eval_segment: Excerpt | None = None,
    options: Mapping[str, str] | None = None,
) -> AudioDeepfakeDataModule:
    """The data module of the part ``data``; nothing is read yet.

    Args:
        paths: the files, as for fit: later ones change earlier ones. ``seed_everything`` is the seed; other parts are
            not used.
        allow: packages besides ours whose classes may be built; None for all, as fit does.
        eval_segment: what is scored of an utterance if no file says so; None for the data module's own.
        options: values by dotted names that begin with ``data.``, which replace those of the files.

    Raises:
        InputError: a file is missing or faulty, or an option is faulty.
    """
    parser = OneLineParser(exit_on_error=False)
    parser.add_class_arguments(AudioDeepfakeDataModule, "data")
    parsed = parse_parts(parser, paths, {"data": None}, allow)
    for path in paths:
        if type(seed := read_configuration(path).get("seed_everything")) is int:
            parsed.data.seed = seed
    if options:
        try:
            with imports_limited(allow):
                parsed = parser.parse_args([f"--{name}={value}" for name, value in options.items()], namespace=parsed)
        except (ArgumentError, ValueError, TypeError) as error:
            raise InputError(explain(str(error), parser)) from None
    data: AudioDeepfakeDataModule = instantiate(parser, parsed, paths, allow).data
    if eval_segment is not None and parsed.data.eval_segment is None:
        data.eval_segment = eval_segment
    return data

"""The command configs: the configurations that come with the package."""

import json
import os
import shlex
import shutil
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser
from moelora_ad.cli.imports import at_once
from moelora_ad.cli.terminal import print_line, print_table
from moelora_ad.configuration.packaged import (
    DATA,
    configuration_file,
    kind,
    packaged_configurations,
    packaged_data,
    packaged_folder,
)
from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError, printable
from moelora_ad.evaluation.reports.text_table import TextTable
from moelora_ad.files import UNFINISHED, written_whole

_EXAMPLES = """examples:
  moelora-ad fit --config quickstart
  moelora-ad fit --config paper --config adapters/lora_r8
  moelora-ad sweep sweeps/quickstart --dry-run
  moelora-ad configs copy quickstart mine.yaml"""

_KINDS = {
    "experiment": "experiments: --config NAME",
    "overlay": "overlays, which change an experiment: --config EXPERIMENT --config NAME",
    "sweep": "sweeps: moelora-ad sweep NAME",
    "data": "data that experiments name: configs copy NAME",
}

_USES = {"sweep": "sweep", "overlay": "fit --config quickstart --config"}


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code: 1 if a configuration is not valid."""
    parser = OneLineArgumentParser(
        prog=f"{program} configs",
        description=f"{__doc__}\nTheir names are accepted wherever a configuration file is.",
        epilog=_EXAMPLES.replace("moelora-ad", program),
        formatter_class=RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="{list,show,copy,validate}")
    listing = actions.add_parser("list", help="names of the configurations, sweeps and data")
    listing.add_argument("--json", metavar="FILE", help="write the list there; - for standard output")
    show = actions.add_parser("show", help="the text of a configuration")
    show.add_argument("name", metavar="NAME")
    copy = actions.add_parser("copy", help="a copy of a configuration, to change, or of data")
    copy.add_argument("name", metavar="NAME", help="a configuration, or data: quickstart/corpus, quickstart/backbone")
    copy.add_argument(
        "to", metavar="TO", nargs="?", help="file or folder to write (default: in this folder, named like the original)"
    )
    copy.add_argument("--overwrite", action="store_true", help="replace an existing file")
    validate = actions.add_parser(
        "validate",
        help="keys, classes and arguments of configurations, without building anything",
        description="Check keys, classes, arguments and values; nothing is built, and no data is read. Several are "
        "checked together: later ones change earlier ones, as in fit. One that only changes others is checked on top "
        "of paper; of a sweep, every system is checked.",
    )
    validate.add_argument(
        "names", metavar="NAME", nargs="*", help="files or names (default: every packaged one, each on its own)"
    )
    validate.add_argument("--config", metavar="NAME", action="append", help="the same as NAME, as fit takes it")
    add_allow(validate)
    given = parser.parse_args(argv[1:])
    try:
        if given.action == "list":
            return _list(given.json)
        if given.action == "show":
            sys.stdout.write(_known(given.name).read_text(encoding="utf-8"))
            return 0
        if given.action == "copy":
            return _copy(given, program)
        if given.names and given.config:
            raise InputError("name the configurations either as NAME or with --config: their order matters")
        names = given.names or given.config or []
        for name in names:
            configuration_file(name)
    except InputError as error:
        parser.error(str(error))
    return _validate([names] if names else [[name] for name in packaged_configurations()], given.allow)


def _known(name: str) -> Path:
    """The file of a configuration.

    Raises:
        InputError: there is no configuration of that name, or the file is none.
    """
    if name in DATA:
        raise InputError(f"{name} is a folder of data, {packaged_data()[name]}; 'configs copy {name}' copies it")
    path = Path(configuration_file(name))
    if path.is_dir():
        raise InputError.at(path, "is a folder, not a configuration; 'configs list' has the names of all")
    kind(path)  # reports what is not YAML
    return path


def _list(json_path: str | None) -> int:
    rows = [
        {"name": name, "kind": kind(path) or "", "what": _first_sentence(path), "path": str(path)}
        for name, path in packaged_configurations().items()
    ]
    rows += [{"name": n, "kind": "data", "what": DATA[n], "path": str(path)} for n, path in packaged_data().items()]
    if json_path == "-":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    for one, title in _KINDS.items():
        of_kind = [(row["name"], printable(row["what"])) for row in rows if row["kind"] == one]
        print_table(TextTable(title, ("", ""), of_kind, 2))
    print_line(f"folder: {packaged_folder()}")
    if json_path is not None:
        with written_whole(json_path) as unfinished:
            unfinished.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def _first_sentence(path: Path) -> str:
    """First sentence of the comment that a configuration begins with."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text or line.startswith("#  "):
            break
        words.append(text)
    sentence, stop, _ = " ".join(words).partition(". ")
    return (sentence + stop.strip()).rstrip(":")


def _copy(given: Namespace, program: str) -> int:
    data = packaged_data().get(given.name)
    source = _known(given.name) if data is None else data
    target = Path(given.to or source.name)
    if data is None and target.is_dir():
        target /= source.name
    if target.exists() and not (data is None and given.overwrite):
        other = "--overwrite" if data is None else "move it away"
        raise InputError(f"{target} already exists: give another name, or {other}")
    if data is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=UNFINISHED, dir=target.parent) as unfinished:
            os.replace(shutil.copytree(data, Path(unfinished) / target.name), target)
        print(f"copied {given.name} to {target}")
        return 0
    with written_whole(target) as unfinished_file:
        unfinished_file.write_bytes(source.read_bytes())
    print(f"copied {given.name} to {target}")
    print(f"next: {program} {_USES.get(kind(source) or '', 'fit --config')} {shlex.quote(str(target))}")
    return 0


def _validate(groups: Sequence[Sequence[str]], allow: Collection[str]) -> int:
    with at_once():
        from moelora_ad.cli.lightning_cli.validation import problems_of

    problems = problems_of(groups, allow)
    for name, problem in problems.items():
        print(f"{name}: {problem or 'valid'}", file=sys.stderr if problem else sys.stdout)
    return FAILED if any(problems.values()) else 0

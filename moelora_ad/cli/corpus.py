"""The command corpus: list the corpora, or check those of an experiment."""

import inspect
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from rich.console import Console

from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser
from moelora_ad.cli.terminal import print_line, print_table, progress
from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError, counted, printable
from moelora_ad.evaluation.reports.text_table import TextTable
from moelora_ad.files import written_whole

if TYPE_CHECKING:
    from moelora_ad.corpora import Corpus
    from moelora_ad.corpora.checking import CorpusReport

_LISTED = 10  # problems of one kind on the terminal; JSON has all


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code: 1 if a corpus has problems."""
    parser = OneLineArgumentParser(prog=f"{program} corpus", description=__doc__)
    verbs = parser.add_subparsers(dest="action", required=True, metavar="{list,check}")
    listing = verbs.add_parser("list", help="every corpus class, with its class_path")
    listing.add_argument("--json", metavar="FILE", help="write the list there; - for standard output")
    check = verbs.add_parser("check", help="trials against official counts, audio of every trial, a sample decoded")
    check.add_argument("--config", action="append", required=True, help="as for fit; only the part 'data' is used")
    check.add_argument("--samples", type=int, default=100, help="files to decode of each corpus (default: 100)")
    check.add_argument("--all", action="store_true", help="decode every file")
    check.add_argument("--json", metavar="FILE", help="write all findings there; - for standard output")
    add_allow(check)
    arguments = parser.parse_args(argv[1:])
    if arguments.action == "list":
        return _list(arguments.json)
    if arguments.samples < 1:
        check.error(f"--samples: {arguments.samples} is not positive")
    try:
        found = _corpora(arguments.config, arguments.allow)
    except InputError as error:
        check.error(str(error))
    return _check(found, None if arguments.all else arguments.samples, arguments.json)


def listed_corpora() -> list[dict[str, str]]:
    """For each corpus class, its ``class_path``, what it reads (``what``), its ``init_args`` and the official numbers
    of ``trials``."""
    from moelora_ad import corpora

    classes: list[type[Corpus]] = [value for name in corpora.__all__ if _is_corpus(value := getattr(corpora, name))]
    return [
        {
            "class_path": f"moelora_ad.corpora.{one.__name__}",
            "what": (inspect.getdoc(one) or "").split("\n\n")[0].replace("\n", " ").replace("``", ""),
            "init_args": ", ".join(_own_arguments(one)),
            "trials": _official(one),
        }
        for one in sorted(classes, key=lambda one: one.__name__.lower())
    ]


def _list(json_path: str | None) -> int:
    from moelora_ad.corpora.selection import SelectionArguments

    rows = listed_corpora()
    if json_path == "-":
        _write(json_path, rows)
        return 0
    listed = [(row["class_path"].rpartition(".")[2], row["what"], row["init_args"], row["trials"]) for row in rows]
    columns = ("CLASS", "what", "init_args", "official trials")
    print_table(TextTable("corpora: class_path moelora_ad.corpora.CLASS", columns, listed, len(columns)))
    print_line(f"every class also takes {', '.join(SelectionArguments.__annotations__)}: lists of names")
    _write(json_path, rows)
    return 0


def _own_arguments(one: "type[Corpus]") -> list[str]:
    parameters = inspect.signature(one).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]


def _official(one: "type[Corpus]") -> str:
    """Official numbers of trials, by the split, phase or list that the class takes."""
    choices = {name: get_args(hint) for name, hint in get_type_hints(one.__init__).items() if get_args(hint)}
    name = next((name for name in ("split", "phase", "trials") if isinstance(choices.get(name, (None,))[0], str)), None)
    parts: dict[str, dict[str, str]] = {part: {name: part} for part in choices[name]} if name else {"": {}}
    try:
        made: Callable[..., Corpus] = one
        counts = {part: made(root="", **given).official_counts() for part, given in parts.items()}
    except TypeError:  # a class for users' own lists
        return ""
    known = {part: count.total for part, count in counts.items() if count and count.total}
    return "\n".join(f"{part} {total:,}".strip() for part, total in known.items())


def _is_corpus(value: Any) -> bool:
    from moelora_ad.corpora import Corpus

    return inspect.isclass(value) and issubclass(value, Corpus) and not inspect.isabstract(value)


def _corpora(configs: list[str], allow: Collection[str]) -> "dict[str, Corpus]":
    """The corpora of configurations, by their place in the part ``data``."""
    from moelora_ad.configuration.data import data_of
    from moelora_ad.data.data_module import TRAIN
    from moelora_ad.data.shares import by_name
    from moelora_ad.runs.record import DEV

    data = data_of(configs, allow)
    found = {f"{TRAIN}.{name}".rstrip("."): corpus for name, corpus in by_name(data.train).items()}
    found |= {DEV: data.val} if data.val else {}
    found |= {f"test.{name}": corpus for name, corpus in data.test.items()}
    if not found:
        raise InputError(f"{', '.join(configs)}: no corpus in the part 'data'")
    return found


def _check(found: "dict[str, Corpus]", samples: int | None, json_path: str | None) -> int:
    from moelora_ad.corpora.checking import check_corpus

    with progress() as show:

        def shown(indices: Iterable[int], what: str, total: int) -> Iterator[int]:
            for done, index in enumerate(indices):
                show(what, done, total)
                yield index

        reports = {place: check_corpus(corpus, samples, shown) for place, corpus in found.items()}
    off = sum(bool(report.problems) for report in reports.values())
    code = FAILED if off else 0
    content = {place: report.as_dict() for place, report in reports.items()}
    if json_path == "-":
        _write(json_path, content)
        return code
    print_table(_counts(reports))
    print_table(_audio(reports))
    console = Console()
    for place, report in reports.items():
        if (out := report.left_out) is not None:
            told = f"leaves out {counted(out.total, 'trial')} ({out.bona_fide:,} bona fide, {out.spoof:,} spoof)"
            print_line(f"{place} ({report.name}): {report.selection} {told}")
        for problem in report.problems:
            console.print(f"{place} ({report.name}): {problem}", style="red", markup=False, soft_wrap=True)
        for reason in list(report.undecodable.values())[1:_LISTED]:
            console.print(f"  {reason}", markup=False, highlight=False, soft_wrap=True)
    of = counted(len(reports), "corpus", "corpora")
    console.print("no problems found" if not off else f"{off} of {of} {'has' if off == 1 else 'have'} problems")
    _write(json_path, content)
    return code


def _counts(reports: "dict[str, CorpusReport]") -> TextTable:
    rows = []
    for place, report in reports.items():
        official = report.official and report.official.total
        counts = (*report.found, official, len(report.missing))
        rows.append((printable(place), *("unknown" if count is None else f"{count:,}" for count in counts)))
    return TextTable("Trials", ("corpus", "trials", "bona fide", "spoof", "official", "no audio"), rows)


def _audio(reports: "dict[str, CorpusReport]") -> TextTable:
    rows = []
    for place, report in reports.items():
        seconds = "{0:.1f} to {2:.1f} ({1:.1f})".format(*report.seconds) if report.seconds else ""
        rates = "\n".join(f"{rate:,} Hz: {count:,}" for rate, count in report.rates.items())
        estimated = "about " if report.decoded < len(report) else ""
        hours = "" if report.hours is None else f"{estimated}{report.hours:,.1f}"
        counts = (f"{report.decoded:,}", f"{len(report.undecodable):,}")
        rows.append((printable(place), *counts, seconds, rates, hours))
    return TextTable("Audio", ("corpus", "decoded", "failed", "seconds (median)", "rates", "hours"), rows)


def _write(path: str | None, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    if path == "-":
        print(text)
    elif path is not None:
        with written_whole(path) as unfinished:
            unfinished.write_text(f"{text}\n", encoding="utf-8")

"""The command prune: drop the experts of a model that no set needs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moelora_ad.cli.analyze import Keywords
from moelora_ad.cli.saved_models.changes import parser_of, points, run_change

if TYPE_CHECKING:
    from moelora_ad.analysis import Report
    from moelora_ad.analysis.changes import Changed


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code: 1 if no expert can be spared."""
    parser = parser_of(
        f"{program} prune",
        "Drop the experts that no set needs, one at a time, the least needed first.",
        "An expert is not needed if the 95 % interval of the EER without it, minus that of the full model, ends at or "
        "below the margin on every deciding set. The other sets are scored afterwards: choose nothing by them.",
        "that decide which experts go",
    )
    parser.add_argument("--margin", type=points, metavar="POINTS", help="largest accepted loss of EER (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="measure on the deciding sets alone; write no model")
    return run_change(parser, argv[1:], _work)


def _work(keywords: Keywords) -> "tuple[Report, Changed | None]":
    from moelora_ad.analysis import prune_experts, prune_report

    pruning = prune_experts(**keywords)
    return prune_report(pruning), pruning.changed

"""The command merge: a mixture's experts as one LoRA, where that loses little enough."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moelora_ad.cli.analyze import Keywords
from moelora_ad.cli.saved_models.changes import parser_of, points, run_change

if TYPE_CHECKING:
    from moelora_ad.analysis import Report
    from moelora_ad.analysis.changes import Changed


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code: 1 if too much would be lost."""
    parser = parser_of(
        f"{program} merge",
        "Hold the gates of a mixture at their mean weights: its N experts of rank r become one LoRA of rank N r.",
        "It is refused unless the 95 % interval of the EER after, minus before, ends at or below the tolerance on "
        "every deciding set. The other sets are scored afterwards.",
        "that give the mean gates, and decide",
    )
    parser.add_argument("--tolerance", type=points, metavar="POINTS", help="largest accepted loss of EER (default: 1)")
    parser.add_argument(
        "--into-weights",
        action="store_true",
        help="merge the LoRA into the encoder's weights: no adapter is left, and the model holds the whole encoder; a "
        "LoRA is merged exactly",
    )
    return run_change(parser, argv[1:], _work)


def _work(keywords: Keywords) -> "tuple[Report, Changed | None]":
    from moelora_ad.analysis import merge_experts, merge_report

    merging = merge_experts(**keywords)
    return merge_report(merging), merging.changed

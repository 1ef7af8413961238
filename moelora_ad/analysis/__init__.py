"""Analyses of what the experts of trained models do.

Each analysis is a function of a run, or of runs, that returns arrays in a typed result; its report has tables for
people, rows and JSON for programs, and figures::

    from moelora_ad.analysis import analyze_routing, routing_report, write_report

    analysis = analyze_routing("runs/moe_lora/seed_1", set="dev")
    analysis.overall.mean_gate  # (S, N)
    write_report(routing_report(analysis), "figures")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moelora_ad.analysis.ensemble import EnsembleAnalysis, analyze_ensemble
    from moelora_ad.analysis.experts import ExpertAnalysis, analyze_experts
    from moelora_ad.analysis.merging import Merging, merge_experts
    from moelora_ad.analysis.pruning import Pruning, prune_experts
    from moelora_ad.analysis.reports.changes import merge_report, prune_report
    from moelora_ad.analysis.reports.ensemble import ensemble_report
    from moelora_ad.analysis.reports.experts import experts_report
    from moelora_ad.analysis.reports.report import Report, write_report
    from moelora_ad.analysis.reports.routing import routing_report
    from moelora_ad.analysis.reports.singular_values import singular_values_report
    from moelora_ad.analysis.reports.stability import stability_report
    from moelora_ad.analysis.routing import RoutingAnalysis, analyze_routing
    from moelora_ad.analysis.singular_values import SingularValueAnalysis, analyze_singular_values
    from moelora_ad.analysis.stability import StabilityAnalysis, analyze_stability

_MODULES = {
    "EnsembleAnalysis": "ensemble",
    "ExpertAnalysis": "experts",
    "Merging": "merging",
    "Pruning": "pruning",
    "Report": "reports.report",
    "RoutingAnalysis": "routing",
    "SingularValueAnalysis": "singular_values",
    "StabilityAnalysis": "stability",
    "analyze_ensemble": "ensemble",
    "analyze_experts": "experts",
    "analyze_routing": "routing",
    "analyze_singular_values": "singular_values",
    "analyze_stability": "stability",
    "ensemble_report": "reports.ensemble",
    "experts_report": "reports.experts",
    "merge_experts": "merging",
    "merge_report": "reports.changes",
    "prune_experts": "pruning",
    "prune_report": "reports.changes",
    "routing_report": "reports.routing",
    "singular_values_report": "reports.singular_values",
    "stability_report": "reports.stability",
    "write_report": "reports.report",
}

__all__ = [
    "EnsembleAnalysis",
    "ExpertAnalysis",
    "Merging",
    "Pruning",
    "Report",
    "RoutingAnalysis",
    "SingularValueAnalysis",
    "StabilityAnalysis",
    "analyze_ensemble",
    "analyze_experts",
    "analyze_routing",
    "analyze_singular_values",
    "analyze_stability",
    "ensemble_report",
    "experts_report",
    "merge_experts",
    "merge_report",
    "prune_experts",
    "prune_report",
    "routing_report",
    "singular_values_report",
    "stability_report",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:  # on demand, as they import torch and matplotlib
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

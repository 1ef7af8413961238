"""Published figures to show beside our own: table 1 of arXiv 2509.13878.

A figure is shown only where it means the same: for a system whose adaptation, backbone, number of trained parameters
and training corpus are those of the paper, on a test set that the paper has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SOURCE = "arXiv 2509.13878, table 1"
TRAINING_CORPUS = "ASVspoof2019_LA"
OUT_OF_DOMAIN = ("ASVspoof2021_LA", "ASVspoof2021_DF", "InTheWild", "FakeAVCeleb", "ASVspoof5")
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "out_proj"}


@dataclass(frozen=True)
class PublishedRow:
    """A row of the paper's table.

    Args:
        name: name of the system.
        trained_millions: number of trained parameters as printed in the paper, in millions.
        trained: their exact number in our implementation; where the paper trains the whole backbone, it counts the
            quantiser of fairseq and the vector of time masking as well, neither of which is ever used.
        mean_ood: mean EER over `OUT_OF_DOMAIN`, a share of 1.
        eers: the EERs that are known to us, by the paper's set, as shares of 1.
    """

    name: str
    trained_millions: str
    trained: int
    mean_ood: float
    eers: Mapping[str, float] = field(default_factory=dict)


_FULL = PublishedRow(
    "full fine-tuning (counts the quantiser, too)",
    "317.8 M",
    315_884_938,
    0.0855,
    {TRAINING_CORPUS: 0.0028, "InTheWild": 0.0397},
)
_LORA_8 = PublishedRow("single LoRA r8", "2.02 M", 2_020_106, 0.0822, {"ASVspoof5": 0.1617})
_DENSE = PublishedRow("MoE-LoRA 3 x r8 dense", "5.76 M", 5_755_658, 0.0608, {"InTheWild": 0.0177, "ASVspoof5": 0.1881})
_TOP_2 = PublishedRow("MoE-LoRA 3 x r8 top-2", "5.76 M", 5_755_658, 0.0910)
_SEVEN = PublishedRow("MoE-LoRA 7 x r8 (dense or top-2: not known to us)", "12.83 M", 12_833_546, 0.0721)


def published_row(
    configuration: Mapping[str, Any], trained: int, training_corpora: Sequence[str]
) -> PublishedRow | None:
    """Return the paper's row of the system that a configuration describes; None if the paper has none.

    Args:
        configuration: a run's ``config.yaml``.
        trained: number of trained parameters.
        training_corpora: names of the corpora trained on.
    """
    model = configuration.get("model")
    model = model if isinstance(model, dict) else {}
    row = _row_of_adaptation(*_built(model.get("adaptation")))
    backbone, arguments = _built(model.get("backbone"))
    same_backbone = backbone == "Wav2Vec2Backbone" and arguments.get("pretrained", True)
    same_training = tuple(training_corpora) == (TRAINING_CORPUS,) and not model.get("meta_learning")
    return row if row is not None and same_backbone and same_training and trained == row.trained else None


def backbone_source(configuration: Mapping[str, Any]) -> str:
    """Return where the weights of a configuration's backbone come from."""
    return str(_built(configuration["model"]["backbone"])[1].get("source", ""))


def paper_set(corpus: str, splits: Sequence[str]) -> str | None:
    """Return the paper's name of a test set; None if the paper does not have it.

    Args:
        corpus: name of the set's corpus.
        splits: splits of its trials; the paper's sets are the evaluation parts.
    """
    # The paper does not say which list of FakeAVCeleb's trials it uses; our corpus has the list in its name.
    name = "FakeAVCeleb" if corpus.startswith("FakeAVCeleb_") else corpus
    whole = set(splits) <= {"eval"}
    return name if whole and name in (TRAINING_CORPUS, *OUT_OF_DOMAIN) else None


def _row_of_adaptation(name: str, arguments: Mapping[str, Any]) -> PublishedRow | None:
    if name == "FullFineTuning":
        return _FULL
    if name not in ("LoRA", "MoELoRA") or not _is_plain(arguments):
        return None
    rank = arguments.get("rank", 8)
    if name == "LoRA":
        return _LORA_8 if rank == 8 else None
    gate = arguments.get("gate") or {}
    gate = gate.get("init_args", gate)
    top_k = arguments.get("top_k") or gate.get("top_k")
    experts = arguments.get("num_experts", 3)
    rows = {(3, None): _DENSE, (3, 3): _DENSE, (3, 2): _TOP_2, (7, None): _SEVEN, (7, 7): _SEVEN, (7, 2): _SEVEN}
    return rows.get((experts, top_k)) if rank == 8 and _is_noisy_top_k(gate) else None


def _is_plain(arguments: Mapping[str, Any]) -> bool:
    """Whether a low-rank method is as the paper's: nothing added, scale 1, four projections of all layers."""
    rank = arguments.get("rank", 8)
    targets = arguments.get("targets", sorted(_PROJECTIONS))
    added = ("layers", "init_from", "share_gate", "freeze_experts", "extend")
    auxiliary = arguments.get("auxiliary") or {}
    auxiliary = auxiliary.get("init_args", auxiliary)
    return (
        arguments.get("alpha") in (None, rank)
        and isinstance(targets, list)
        and set(map(str, targets)) == _PROJECTIONS
        and not any(arguments.get(name) for name in added)
        and not any(auxiliary.values())
    )


def _is_noisy_top_k(gate: Mapping[str, Any]) -> bool:
    """Whether a gate is a softmax over all experts with learned noise, without renormalisation, for each token."""
    paper = {
        "noise": "learned",
        "renormalise": False,
        "order": "softmax_first",
        "level": "token",
        "temperature": 1.0,
        "noise_mean": None,
        "noise_std": None,
    }
    return all(gate.get(name, value) == value for name, value in paper.items())


def _built(part: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the class (without its module) and the arguments of a part of a configuration."""
    if isinstance(part, str):
        return part.rpartition(".")[2], {}
    if not isinstance(part, dict):
        return "", {}
    return str(part.get("class_path", "")).rpartition(".")[2], part.get("init_args") or {}

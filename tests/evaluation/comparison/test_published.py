"""Published figures are shown only beside the systems and test sets that they belong to."""

from typing import Any

import pytest
import yaml

from moelora_ad.evaluation.comparison.published import PublishedRow, paper_set, published_row

LA = ("ASVspoof2019_LA",)
# Trained parameters of XLSR-53 with AASIST: 24 layers, 4 projections, 1024 wide; two gates of N x 1024 each.
AASIST = 447_242
SETS = 24 * 4


def trained(experts: int, rank: int) -> int:
    gates = 0 if experts == 1 else SETS * 2 * 1024 * experts
    return AASIST + SETS * 2 * 1024 * rank * experts + gates


def configuration(adaptation: str, **model: Any) -> dict[str, Any]:
    text = f"""
    model:
      backbone: {{class_path: moelora_ad.models.Wav2Vec2Backbone, init_args: {{source: facebook/xlsr}}}}
      adaptation: {adaptation}
    """
    content = yaml.safe_load(text)
    content["model"] |= model
    return content


def moe(**arguments: Any) -> str:
    given = {
        "num_experts": 3,
        "rank": 8,
        "top_k": None,
        "gate": None,
        "targets": ["q_proj", "k_proj", "v_proj", "out_proj"],
    }
    return yaml.safe_dump(
        {"class_path": "moelora_ad.adapters.MoELoRA", "init_args": given | arguments}, default_flow_style=True
    )


FULL = 315_438_720 - 1_024  # Wav2Vec2Model without the vector of time masking, which is never used
LORA = "{class_path: moelora_ad.adapters.LoRA, init_args: {rank: 8, alpha: null}}"


@pytest.mark.parametrize(
    ("adaptation", "number", "name", "mean"),
    [
        ("{class_path: moelora_ad.adapters.FullFineTuning}", FULL + AASIST, "full fine-tuning", 8.55),
        ("moelora_ad.adapters.FullFineTuning", FULL + AASIST, "full fine-tuning", 8.55),
        (LORA, trained(1, 8), "single LoRA r8", 8.22),
        (moe(), trained(3, 8), "MoE-LoRA 3 x r8 dense", 6.08),
        (moe(top_k=3), trained(3, 8), "MoE-LoRA 3 x r8 dense", 6.08),
        (moe(alpha=8, auxiliary={"init_args": {"load_balance": 0.0}}), trained(3, 8), "MoE-LoRA 3 x r8 dense", 6.08),
        (moe(top_k=2), trained(3, 8), "MoE-LoRA 3 x r8 top-2", 9.10),
        (moe(gate={"top_k": 2, "noise": "learned"}), trained(3, 8), "MoE-LoRA 3 x r8 top-2", 9.10),
        (moe(num_experts=7), trained(7, 8), "MoE-LoRA 7 x r8", 7.21),
    ],
)
def test_systems_of_the_paper(adaptation: str, number: int, name: str, mean: float) -> None:
    row = published_row(configuration(adaptation), number, LA)
    assert isinstance(row, PublishedRow)
    assert row.name.startswith(name)
    assert row.mean_ood == pytest.approx(mean / 100)


@pytest.mark.parametrize(
    ("adaptation", "number"),
    [
        (LORA.replace("8", "4"), trained(1, 4)),
        (moe(rank=4), trained(3, 4)),
        (moe(num_experts=5), trained(5, 8)),
        (moe(), trained(3, 8) + 1),  # the size with another backbone or classifier
        (moe(alpha=16), trained(3, 8)),
        (moe(targets=["q_proj", "v_proj", "fc1", "fc2"]), trained(3, 8)),
        (moe(targets="all"), trained(3, 8)),
        (moe(init_from="runs/lora"), trained(3, 8)),
        (moe(freeze_experts=[0]), trained(3, 8)),
        (moe(auxiliary={"load_balance": 0.01}), trained(3, 8)),
        (moe(gate={"renormalise": True}), trained(3, 8)),
        (moe(gate={"noise": "none"}), trained(3, 8)),
        (moe(share_gate=True), trained(3, 8)),
        ("{class_path: moelora_ad.adapters.FrozenBackbone}", AASIST),
        ("{class_path: moelora_ad.adapters.FullFineTuning}", 8_672_010),
        ("null", trained(3, 8)),
    ],
)
def test_other_systems_have_no_row(adaptation: str, number: int) -> None:
    assert published_row(configuration(adaptation), number, LA) is None


def test_training_and_backbone_must_be_the_papers() -> None:
    assert published_row(configuration(moe()), trained(3, 8), ("ASVspoof5",)) is None
    assert published_row(configuration(moe()), trained(3, 8), (*LA, "ASVspoof5")) is None
    for model in (
        {"backbone": {"class_path": "moelora_ad.models.WavLMBackbone", "init_args": {"source": "x"}}},
        {"backbone": {"class_path": "moelora_ad.models.Wav2Vec2Backbone", "init_args": {"pretrained": False}}},
        {"meta_learning": {"class_path": "moelora_ad.training.MLDG"}},
    ):
        assert published_row(configuration(moe(), **model), trained(3, 8), LA) is None
    assert published_row({}, 1, LA) is None


@pytest.mark.parametrize(
    ("corpus", "splits", "name"),
    [
        ("ASVspoof2019_LA", ("eval",), "ASVspoof2019_LA"),
        ("ASVspoof2019_LA", ("dev",), None),
        ("ASVspoof2019_LA", ("dev", "eval"), None),
        ("ASVspoof2021_DF", ("progress",), None),
        ("InTheWild", (), "InTheWild"),
        ("FakeAVCeleb_all", (), "FakeAVCeleb"),
        ("FakeAVCeleb", (), "FakeAVCeleb"),
        ("MiniLA", ("eval",), None),
    ],
)
def test_sets_of_the_paper(corpus: str, splits: tuple[str, ...], name: str | None) -> None:
    assert paper_set(corpus, splits) == name

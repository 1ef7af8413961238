"""Low-rank adapters and their mixtures for any PyTorch model; knows nothing of audio."""

from moelora_ad.adapters.arguments import RemembersArguments
from moelora_ad.adapters.errors import AdapterError, InjectionError
from moelora_ad.adapters.gate import Gate, GatePolicy, valid_tokens
from moelora_ad.adapters.injection import CallWatch, LayerRange, adapted_sites, adapter_modules, inject
from moelora_ad.adapters.layer import MoELoRALinear
from moelora_ad.adapters.lora import LoRAExpert
from moelora_ad.adapters.methods import (
    ATTENTION_PROJECTIONS,
    AdaptationMethod,
    FrozenBackbone,
    FullFineTuning,
    LoRA,
    MoELoRA,
    TopLayers,
)

__all__ = [
    "ATTENTION_PROJECTIONS",
    "AdaptationMethod",
    "AdapterError",
    "CallWatch",
    "FrozenBackbone",
    "FullFineTuning",
    "Gate",
    "GatePolicy",
    "InjectionError",
    "LayerRange",
    "LoRA",
    "LoRAExpert",
    "MoELoRA",
    "MoELoRALinear",
    "RemembersArguments",
    "TopLayers",
    "adapted_sites",
    "adapter_modules",
    "inject",
    "valid_tokens",
]

"""Low-rank adapters and their mixtures for any PyTorch model; knows nothing of audio."""

from moelora_ad.adapters.arguments import RemembersArguments
from moelora_ad.adapters.errors import AdapterError, InjectionError
from moelora_ad.adapters.gate import Gate, GatePolicy, valid_tokens
from moelora_ad.adapters.injection import CallWatch, LayerRange, adapted_sites, adapter_modules, inject
from moelora_ad.adapters.layer import MoELoRALinear
from moelora_ad.adapters.lora import LoRAExpert
from moelora_ad.adapters.losses import AuxiliaryLosses, AuxiliaryWeights
from moelora_ad.adapters.methods import (
    ATTENTION_PROJECTIONS,
    AdaptationMethod,
    FrozenBackbone,
    FullFineTuning,
    LoRA,
    MoELoRA,
    TopLayers,
)
from moelora_ad.adapters.routing import Decision, RoutingRecord, SiteRouting, record_routing, watch_gates
from moelora_ad.adapters.spectra import principal_angles, singular_values

__all__ = [
    "ATTENTION_PROJECTIONS",
    "AdaptationMethod",
    "AdapterError",
    "AuxiliaryLosses",
    "AuxiliaryWeights",
    "CallWatch",
    "Decision",
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
    "RoutingRecord",
    "SiteRouting",
    "TopLayers",
    "adapted_sites",
    "adapter_modules",
    "inject",
    "principal_angles",
    "record_routing",
    "singular_values",
    "valid_tokens",
    "watch_gates",
]

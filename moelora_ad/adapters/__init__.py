"""Low-rank adapters and their mixtures for any PyTorch model, independent of audio."""

from moelora_ad.adapters.arguments import RemembersArguments
from moelora_ad.adapters.errors import AdapterError, InjectionError
from moelora_ad.adapters.expert import LoRAExpert
from moelora_ad.adapters.extension import Extension
from moelora_ad.adapters.gate import Gate, GatePolicy, valid_tokens
from moelora_ad.adapters.injection import (
    CallWatch,
    LayerRange,
    adapted_sites,
    adapter_modules,
    inject,
    running_eagerly,
)
from moelora_ad.adapters.layer import MoELoRALinear, joined_matrices
from moelora_ad.adapters.losses import AuxiliaryLosses, AuxiliaryWeights
from moelora_ad.adapters.methods import (
    ATTENTION_PROJECTIONS,
    FrozenBackbone,
    FullFineTuning,
    LoRA,
    MoELoRA,
    TopLayers,
)
from moelora_ad.adapters.peft.files import LoRAUpdate, load_lora, lora_updates, read_lora
from moelora_ad.adapters.peft.format import adapt_from_peft, save_peft
from moelora_ad.adapters.protocol import AdaptationMethod, AuxiliaryTerms, Ownership
from moelora_ad.adapters.routing import (
    Decision,
    RoutingRecord,
    SiteRouting,
    effective_experts,
    record_routing,
    watch_gates,
)
from moelora_ad.adapters.spectra import principal_angles, singular_values
from moelora_ad.adapters.surgery.experts import (
    add_expert,
    drop_expert,
    freeze_experts,
    knocked_out,
    set_logit_offset,
    split_expert,
)
from moelora_ad.adapters.surgery.merging import (
    Merged,
    StaticError,
    merge,
    merge_static_mixture,
    put_loras,
    static_mixture,
    static_mixture_error,
)
from moelora_ad.adapters.surgery.starting import mixture_of_loras, warm_start

__all__ = [
    "ATTENTION_PROJECTIONS",
    "AdaptationMethod",
    "AdapterError",
    "AuxiliaryLosses",
    "AuxiliaryTerms",
    "AuxiliaryWeights",
    "CallWatch",
    "Decision",
    "Extension",
    "FrozenBackbone",
    "FullFineTuning",
    "Gate",
    "GatePolicy",
    "InjectionError",
    "LayerRange",
    "LoRA",
    "LoRAExpert",
    "LoRAUpdate",
    "Merged",
    "MoELoRA",
    "MoELoRALinear",
    "Ownership",
    "RemembersArguments",
    "RoutingRecord",
    "SiteRouting",
    "StaticError",
    "TopLayers",
    "adapt_from_peft",
    "adapted_sites",
    "adapter_modules",
    "add_expert",
    "drop_expert",
    "effective_experts",
    "freeze_experts",
    "inject",
    "joined_matrices",
    "knocked_out",
    "load_lora",
    "lora_updates",
    "merge",
    "merge_static_mixture",
    "mixture_of_loras",
    "principal_angles",
    "put_loras",
    "read_lora",
    "record_routing",
    "running_eagerly",
    "save_peft",
    "set_logit_offset",
    "singular_values",
    "split_expert",
    "static_mixture",
    "static_mixture_error",
    "valid_tokens",
    "warm_start",
    "watch_gates",
]

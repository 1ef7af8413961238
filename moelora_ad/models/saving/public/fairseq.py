"""Encoders with fairseq's names: wav2vec 2.0, XLSR-53, XLS-R, MMS and HuBERT, as folders of transformers.

A checkpoint of fairseq says how its encoder was made; detectors that others trained on such an encoder hold only its
tensors. What the tensors' shapes determine is read from them. What they do not determine (attention heads, strides) is
that of the published sizes, or must be given.
"""

import re
from collections.abc import Mapping
from itertools import count
from typing import Any

from torch import Tensor
from transformers import (
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from moelora_ad.errors import InputError
from moelora_ad.models.backbones.pretrained import random_encoder
from moelora_ad.models.dry_build import MOST_OF_ENCODER, dry_build
from moelora_ad.models.saving.public.contents import Encoder
from moelora_ad.models.saving.public.naming import matched
from moelora_ad.models.saving.public.unpickling import field

HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}
"""Attention heads of the published models by their width, which no shape determines."""
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
"""Kernels and strides of the convolutions of all published models."""
_PRETRAINING = re.compile(r"(quantizer|project_q|final_proj|target_glu|input_quantizer)\..*|label_embs_concat")
"""Tensors that only pre-training needs."""


def fairseq_encoder(
    tensors: Mapping[str, Tensor],
    where: str,
    normalize: bool,
    options: Any = None,
    attention_heads: int | None = None,
) -> Encoder:
    """Convert an encoder with fairseq's names.

    Args:
        tensors: the encoder's tensors; those of pre-training are left out.
        where: the checkpoint's name in messages.
        normalize: whether it was trained on waveforms of zero mean and unit variance.
        options: ``cfg.model`` or ``args`` of a fairseq checkpoint; None if it has neither.
        attention_heads: their number, if neither the options nor the width of a published model determines it.

    Raises:
        InputError: a tensor is missing, unknown or of another shape, or required information is missing.
    """
    given = {name: tensor for name, tensor in tensors.items() if not _PRETRAINING.fullmatch(name)}
    is_hubert = "label_embs_concat" in tensors
    told = _architecture(given, where, options, attention_heads)
    model: type[PreTrainedModel] = HubertModel if is_hubert else Wav2Vec2Model
    try:
        config = (HubertConfig if is_hubert else Wav2Vec2Config)(**told)
    except Exception as error:  # transformers checks values in its own way
        raise InputError(f"{where}: its tensors are not those of an encoder: {' '.join(str(error).split())}") from None
    with dry_build(MOST_OF_ENCODER):
        dry = random_encoder(model, config, where)
    names = {name: _fairseq_name(name, config.feat_extract_norm) for name in dry.state_dict()}
    found = matched(given, dry, names, where)
    masks = config.feat_extract_norm == "layer"  # else it was trained without attention masks
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=masks)
    return Encoder(model, config, found, extractor)


def _architecture(given: Mapping[str, Tensor], where: str, options: Any, attention_heads: int | None) -> dict[str, Any]:
    """The encoder's configuration for transformers."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in given:
            raise InputError(f"{where}: lacks the tensor {name}: this is not a wav2vec 2.0 encoder of fairseq")
        if given[name].ndim != dimensions:
            raise InputError(f"{where}: {name} is {tuple(given[name].shape)}, not of {dimensions} dimensions")
        return tuple(given[name].shape)

    convolutions = [shape("feature_extractor.conv_layers.0.0.weight", 3)]
    for number in count(1):
        if f"feature_extractor.conv_layers.{number}.0.weight" not in given:
            break
        convolutions.append(shape(f"feature_extractor.conv_layers.{number}.0.weight", 3))
    kernels = tuple(kernel for _, _, kernel in convolutions)
    layers = {int(found[1]) for name in given if (found := re.match(r"encoder\.layers\.(\d{1,4})\.", name))}
    (width,) = shape("encoder.layer_norm.weight", 1)
    (inner, _) = shape("encoder.layers.0.fc1.weight", 2)
    (_, group, positions) = shape("encoder.pos_conv.0.weight_v", 3)
    by_layer = "feature_extractor.conv_layers.0.2.1.weight" in given
    first = field(options, "layer_norm_first")
    return {
        "conv_dim": tuple(channels for channels, _, _ in convolutions),
        "conv_kernel": kernels,
        "conv_stride": _strides(kernels, where, options),
        "conv_bias": "feature_extractor.conv_layers.0.0.bias" in given,
        "feat_extract_norm": "layer" if by_layer else "group",
        "do_stable_layer_norm": first if isinstance(first, bool) else by_layer,  # as in all published models
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "intermediate_size": inner,
        "num_attention_heads": _heads(width, where, options, attention_heads),
        "hidden_act": _activation(where, options),
        "num_conv_pos_embeddings": positions,
        "num_conv_pos_embedding_groups": width // max(group, 1),
        "mask_time_prob": 0.075 if "mask_emb" in given else 0.0,  # above 0, the encoder has a mask vector
    }


def _heads(width: int, where: str, options: Any, given: int | None) -> int:
    told = field(options, "encoder_attention_heads")
    heads = told if type(told) is int else given or HEADS.get(width)
    if heads is None:
        raise InputError(
            f"{where}: the file does not have the number of attention heads of an encoder of width {width}: give it, "
            "--attention-heads N (in Python attention_heads=)"
        )
    if heads < 1 or width % heads:
        raise InputError(f"{where}: {heads} attention heads do not fit a width of {width}: see --attention-heads")
    return heads


def _activation(where: str, options: Any) -> str:
    told = field(options, "activation_fn") or "gelu"
    if told not in ("gelu", "relu"):
        raise InputError(f"{where}: its activation is {told!r}: gelu and relu are supported")
    return str(told)


def _strides(kernels: tuple[int, ...], where: str, options: Any) -> tuple[int, ...]:
    """Strides of the convolutions, which fairseq writes as sums and multiples of lists [(channels, kernel, stride)]."""
    told = field(options, "conv_feature_layers")
    if told is None:
        if kernels != KERNELS:
            raise InputError(
                f"{where}: its convolutions have kernels of {kernels} samples, and their strides are unknown"
            )
        return STRIDES
    layer = r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\)"
    term = rf"\s*\[((?:\s*{layer}\s*,?)*)\s*\](?:\s*\*\s*(\d{{1,2}}))?\s*"
    layers: list[tuple[int, ...]] = []
    for one in str(told).split("+"):
        if found := re.fullmatch(term, one):
            layers += [tuple(map(int, triple)) for triple in re.findall(layer, found[1])] * int(found[5] or 1)
    if tuple(kernel for _, kernel, _ in layers) != kernels:
        raise InputError(f"{where}: conv_feature_layers is {told!r}, which does not match the tensors")
    return tuple(stride for _, _, stride in layers)


def _fairseq_name(name: str, norm: str) -> str:
    """fairseq's name of a tensor of transformers' encoder."""
    if found := re.fullmatch(r"feature_extractor\.conv_layers\.(\d+)\.(conv|layer_norm)\.(\w+)", name):
        number, kind, tensor = found.groups()
        place = "0" if kind == "conv" else "2.1" if norm == "layer" else "2"
        return f"feature_extractor.conv_layers.{number}.{place}.{tensor}"
    if name in _TENSORS:
        return _TENSORS[name]
    for ours, theirs in _MODULES:
        if re.match(ours, name):
            return re.sub(ours, theirs, name, count=1)
    return name


_TENSORS = {
    "masked_spec_embed": "mask_emb",
    "encoder.pos_conv_embed.conv.bias": "encoder.pos_conv.0.bias",
    "encoder.pos_conv_embed.conv.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
    "encoder.pos_conv_embed.conv.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
}
_LAYER = r"encoder\.layers\.(\d+)\."
_MODULES = (
    (r"feature_projection\.layer_norm\.", "layer_norm."),
    (r"feature_projection\.projection\.", "post_extract_proj."),
    (rf"{_LAYER}attention\.", r"encoder.layers.\1.self_attn."),
    (rf"{_LAYER}layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (rf"{_LAYER}feed_forward\.intermediate_dense\.", r"encoder.layers.\1.fc1."),
    (rf"{_LAYER}feed_forward\.output_dense\.", r"encoder.layers.\1.fc2."),
)

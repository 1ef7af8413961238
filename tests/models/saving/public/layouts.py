"""Published layouts, written from transformers' models, and AASIST's equations on tensors by their public names."""

import argparse
import math
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

State = Mapping[str, Tensor]

# transformers' name -> fairseq's, as in the conversion that transformers publishes
NAMES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"feature_projection\.layer_norm\.", "layer_norm."),
    (r"feature_projection\.projection\.", "post_extract_proj."),
    (r"masked_spec_embed", "mask_emb"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", "encoder.pos_conv.0.weight_g"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", "encoder.pos_conv.0.weight_v"),
    (r"encoder\.pos_conv_embed\.conv\.bias", "encoder.pos_conv.0.bias"),
    (r"encoder\.layers\.(\d+)\.attention\.", r"encoder.layers.\1.self_attn."),
    (r"encoder\.layers\.(\d+)\.layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.", r"encoder.layers.\1.fc1."),
    (r"encoder\.layers\.(\d+)\.feed_forward\.output_dense\.", r"encoder.layers.\1.fc2."),
)


def fairseq_state(model: torch.nn.Module, pretraining: bool = True) -> dict[str, Tensor]:
    """An encoder's tensors under fairseq's names, with tensors of pre-training as in fairseq's files."""
    by_layer = model.config.feat_extract_norm == "layer"
    found = {}
    for name, tensor in model.state_dict().items():
        norm = r"feature_extractor.conv_layers.\1.2.1." if by_layer else r"feature_extractor.conv_layers.\1.2."
        renamed = re.sub(r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", norm, name)
        if renamed == name:
            pattern, to = next((one for one in NAMES if re.match(one[0], name)), ("", ""))
            renamed = re.sub(pattern, to, name, count=1) if pattern else name
        found[renamed] = tensor.clone()
    if pretraining:
        found["quantizer.vars"] = torch.randn(1, 4, 2)
        for module in ("quantizer.weight_proj", "project_q", "final_proj"):
            found |= {f"{module}.weight": torch.randn(4, 3), f"{module}.bias": torch.randn(4)}
    return found


def fairseq_options(config) -> dict:
    """The ``cfg.model`` that fairseq stores for such an encoder."""
    layers = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    return {
        "_name": "wav2vec2",
        "extractor_mode": "layer_norm" if config.feat_extract_norm == "layer" else "default",
        "conv_feature_layers": " + ".join(f"[({d}, {k}, {s})]" for d, k, s in layers),
        "conv_bias": config.conv_bias,
        "layer_norm_first": config.do_stable_layer_norm,
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "activation_fn": "gelu",
    }


def fairseq_file(path: Path, model: torch.nn.Module, normalize: bool = True, /, **changes) -> Path:
    """Write a checkpoint as fairseq does today, with the optimiser's moments."""
    content = {
        "args": None,
        "cfg": {"_name": None, "model": fairseq_options(model.config), "task": {"normalize": normalize, "data": "x"}},
        "model": fairseq_state(model),
        "criterion": None,
        "optimizer_history": [{"num_updates": 3, "best_loss": 1.5}],
        "task_state": {},
        "extra_state": {"epoch": 2},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    }
    torch.save(content | changes, path)
    return path


def old_fairseq_file(path: Path, model: torch.nn.Module, normalize: bool) -> Path:
    """Write a checkpoint as earlier versions of fairseq did, with the options in a namespace."""
    arguments = argparse.Namespace(**fairseq_options(model.config), normalize=normalize, arch="wav2vec2")
    torch.save({"args": arguments, "model": fairseq_state(model), "extra_state": {}}, path)
    return path


def head_state(channels: int, node: int, rows: int, width: int | None = None, branch: int = 32) -> dict[str, Tensor]:
    """Random tensors by AASIST's public names, for raw AASIST or for a head on an encoder of a given width."""
    generator = torch.Generator().manual_seed(1)
    found: dict[str, Tensor] = {}

    def draw(name: str, *shape: int) -> None:
        found[name] = torch.randn(shape, generator=generator) / max(1, math.prod(shape[1:])) ** 0.5

    def layer(name: str, outputs: int, *inputs: int) -> None:
        draw(f"{name}.weight", outputs, *inputs)
        draw(f"{name}.bias", outputs)

    def batch_norm(name: str, features: int) -> None:
        layer(name, features)
        draw(f"{name}.running_mean", features)
        found[f"{name}.running_var"] = 0.5 + torch.rand(features, generator=generator)
        found[f"{name}.num_batches_tracked"] = torch.tensor(7)

    if width is not None:
        layer("LL", 128, width)
        batch_norm("first_bn1", channels)
        layer("attention.0", 128, channels, 1, 1)
        batch_norm("attention.2", 128)
        layer("attention.3", channels, 128, 1, 1)
    batch_norm("first_bn", 1)
    sizes = [1, 32, 32, *[channels] * 4]
    for n, (before, after) in enumerate(pairwise(sizes)):
        if n:
            batch_norm(f"encoder.{n}.0.bn1", before)
        layer(f"encoder.{n}.0.conv1", after, before, 2, 3)
        batch_norm(f"encoder.{n}.0.bn2", after)
        layer(f"encoder.{n}.0.conv2", after, after, 2, 3)
        if n in (0, 2):
            layer(f"encoder.{n}.0.conv_downsample", after, before, 1, 3)
    draw("pos_S", 1, rows, channels)
    for name in ("GAT_layer_S", "GAT_layer_T"):
        for part in ("att_proj", "proj_with_att", "proj_without_att"):
            layer(f"{name}.{part}", node, channels)
        draw(f"{name}.att_weight", node, 1)
        batch_norm(f"{name}.bn", node)
    for one in "12":
        draw(f"master{one}", 1, 1, node)
        for two, inputs in (("1", node), ("2", branch)):
            name = f"HtrgGAT_layer_ST{one}{two}"
            for part in ("proj_type1", "proj_type2"):
                layer(f"{name}.{part}", inputs, inputs)
            for part in ("att_proj", "att_projM", "proj_with_att", "proj_without_att", "proj_with_attM"):
                layer(f"{name}.{part}", branch, inputs)
            layer(f"{name}.proj_without_attM", branch, inputs)
            for kind in ("11", "22", "12", "M"):
                draw(f"{name}.att_weight{kind}", branch, 1)
            batch_norm(f"{name}.bn", branch)
        for part in ("S", "T"):
            layer(f"pool_h{part}{one}.proj", 1, branch)
    for part in ("S", "T"):
        layer(f"pool_{part}.proj", 1, node)
    layer("out_layer", 2, 5 * branch)
    return found


# AASIST's equations on tensors by their public names


def linear(s: State, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])


def norm(s: State, name: str, x: Tensor) -> Tensor:
    shape = (1, -1) + (1,) * (x.ndim - 2)
    centred = (x - s[f"{name}.running_mean"].view(shape)) / (s[f"{name}.running_var"].view(shape) + 1e-5).sqrt()
    return centred * s[f"{name}.weight"].view(shape) + s[f"{name}.bias"].view(shape)


def node_norm(s: State, name: str, x: Tensor) -> Tensor:
    return norm(s, name, x.reshape(-1, x.shape[-1])).view_as(x)


def block(s: State, name: str, x: Tensor) -> Tensor:
    def convolved(part: str, x: Tensor, padding: tuple[int, int]) -> Tensor:
        return functional.conv2d(x, s[f"{name}.{part}.weight"], s[f"{name}.{part}.bias"], padding=padding)

    y = functional.selu(norm(s, f"{name}.bn2", convolved("conv1", x, (1, 1))))
    shortcut = convolved("conv_downsample", x, (0, 1)) if f"{name}.conv_downsample.weight" in s else x
    return convolved("conv2", y, (0, 1)) + shortcut


def pairs(x: Tensor) -> Tensor:
    return torch.stack([x[:, i : i + 1] * x for i in range(x.shape[1])], dim=1)


def graph(s: State, name: str, x: Tensor, temperature: float) -> Tensor:
    weights = (torch.tanh(linear(s, f"{name}.att_proj", pairs(x))) @ s[f"{name}.att_weight"]) / temperature
    attended = torch.softmax(weights, dim=-2).squeeze(-1) @ x
    y = linear(s, f"{name}.proj_with_att", attended) + linear(s, f"{name}.proj_without_att", x)
    return functional.selu(node_norm(s, f"{name}.bn", y))


def mixed_graph(s: State, name: str, one: Tensor, two: Tensor, master: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.cat([linear(s, f"{name}.proj_type1", one), linear(s, f"{name}.proj_type2", two)], dim=1)
    n = one.shape[1]
    mapped = torch.tanh(linear(s, f"{name}.att_proj", pairs(x)))
    weights = torch.zeros(*mapped.shape[:3])
    for rows in (slice(0, n), slice(n, None)):
        for columns in (slice(0, n), slice(n, None)):
            kind = {(0, 0): "11", (n, n): "22"}.get((rows.start, columns.start), "12")
            weights[:, rows, columns] = (mapped[:, rows, columns] @ s[f"{name}.att_weight{kind}"]).squeeze(-1)
    attended = torch.softmax(weights.unsqueeze(-1) / 100, dim=-2).squeeze(-1) @ x
    weights = torch.tanh(linear(s, f"{name}.att_projM", x * master)) @ s[f"{name}.att_weightM"] / 100
    gathered = torch.softmax(weights, dim=-2).transpose(1, 2) @ x
    master = linear(s, f"{name}.proj_with_attM", gathered) + linear(s, f"{name}.proj_without_attM", master)
    y = linear(s, f"{name}.proj_with_att", attended) + linear(s, f"{name}.proj_without_att", x)
    y = functional.selu(node_norm(s, f"{name}.bn", y))
    return y[:, :n], y[:, n:], master


def pooled(s: State, name: str, x: Tensor, ratio: float) -> Tensor:
    scores = torch.sigmoid(linear(s, f"{name}.proj", x))
    order = scores.squeeze(-1).argsort(dim=1, descending=True)[:, : max(int(x.shape[1] * ratio), 1)]
    return torch.stack([(x * scores)[row, order[row]] for row in range(len(x))])


def of_nodes(s: State, spectral: Tensor, temporal: Tensor, ratios: tuple[float, float, float]) -> Tensor:
    spectral = pooled(s, "pool_S", graph(s, "GAT_layer_S", spectral + s["pos_S"], 2.0), ratios[0])
    temporal = pooled(s, "pool_T", graph(s, "GAT_layer_T", temporal, 2.0), ratios[1])
    branches = []
    for n in "12":
        master = s[f"master{n}"].expand(len(spectral), -1, -1)
        t, f, m = mixed_graph(s, f"HtrgGAT_layer_ST{n}1", temporal, spectral, master)
        f, t = pooled(s, f"pool_hS{n}", f, ratios[2]), pooled(s, f"pool_hT{n}", t, ratios[2])
        more = mixed_graph(s, f"HtrgGAT_layer_ST{n}2", t, f, m)
        branches.append([a + b for a, b in zip((t, f, m), more, strict=True)])
    t, f, m = (torch.maximum(a, b) for a, b in zip(*branches, strict=True))
    read = [t.abs().amax(1), t.mean(1), f.abs().amax(1), f.mean(1), m.squeeze(1)]
    return linear(s, "out_layer", torch.cat(read, dim=1))


def aasist_on_encoder(s: State, features: Tensor) -> Tensor:
    """Logits of SSL_Anti-spoofing's head for features (B, frames, width)."""
    x = functional.max_pool2d(linear(s, "LL", features).transpose(1, 2).unsqueeze(1), 3)
    x = functional.selu(norm(s, "first_bn", x))
    for n in range(6):
        x = block(s, f"encoder.{n}.0", x)
    x = functional.selu(norm(s, "first_bn1", x))
    w = functional.conv2d(x, s["attention.0.weight"], s["attention.0.bias"])
    w = norm(s, "attention.2", functional.selu(w))
    w = functional.conv2d(w, s["attention.3.weight"], s["attention.3.bias"])
    spectral = (x * torch.softmax(w, dim=-1)).sum(-1).transpose(1, 2)
    temporal = (x * torch.softmax(w, dim=-2)).sum(-2).transpose(1, 2)
    return of_nodes(s, spectral, temporal, (0.5, 0.5, 0.5))


def raw_aasist(s: State, waveforms: Tensor, ratios: tuple[float, float, float]) -> Tensor:
    """Logits of the raw AASIST for waveforms (B, samples)."""
    edges = 700 * (10 ** (torch.linspace(0, 1, 71, dtype=torch.float64) * mel(8_000) / 2595) - 1)
    time = torch.arange(-64, 65, dtype=torch.float64)
    window = torch.hamming_window(129, periodic=False, dtype=torch.float64)
    ideal = [2 * f / 16_000 * torch.sinc(2 * f * time / 16_000) for f in edges]
    filters = torch.stack([(high - low) * window for low, high in pairwise(ideal)]).float()
    x = functional.conv1d(waveforms.unsqueeze(1), filters.unsqueeze(1)).unsqueeze(1)
    x = functional.selu(norm(s, "first_bn", functional.max_pool2d(x.abs(), 3)))
    for n in range(6):
        x = functional.max_pool2d(block(s, f"encoder.{n}.0", x), (1, 3))
    return of_nodes(s, x.abs().amax(3).transpose(1, 2), x.abs().amax(2).transpose(1, 2), ratios)


def mel(frequency: float) -> Tensor:
    return 2595 * torch.log10(torch.tensor(1 + frequency / 700, dtype=torch.float64))

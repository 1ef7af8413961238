"""The names of our heads' tensors in the public code of AASIST, raw and on wav2vec 2.0."""

_MODULES = {
    "front": "LL",
    "front_norm": "first_bn",
    "blocks_norm": "first_bn1",
    "attention": "attention",
    "spectral_graph": "GAT_layer_S",
    "temporal_graph": "GAT_layer_T",
    "pool_spectral": "pool_S",
    "pool_temporal": "pool_T",
    "output": "out_layer",
}
_PARTS = {
    "unused_norm": "bn1",
    "norm": "bn2",
    "shortcut": "conv_downsample",
    "pair": "att_proj",
    "pair_weight": "att_weight",
    "attended": "proj_with_att",
    "direct": "proj_without_att",
    "project_temporal": "proj_type1",
    "project_spectral": "proj_type2",
    "weight_temporal": "att_weight11",
    "weight_spectral": "att_weight22",
    "weight_across": "att_weight12",
    "master_pair": "att_projM",
    "master_weight": "att_weightM",
    "master_attended": "proj_with_attM",
    "master_direct": "proj_without_attM",
    "score": "proj",
}


def public_name(name: str) -> str:
    """The public code's name of one of our tensors: branch n has ``HtrgGAT_layer_STn1``, ``pool_hSn``, ``mastern``."""
    head, *rest = name.split(".")
    if head == "spectral_positions":
        return "pos_S"
    if head == "blocks":
        return ".".join(["encoder", rest[0], "0", _PARTS.get(rest[1], rest[1]), *rest[2:]])
    if head == "branches":
        number, part, *rest = str(int(rest[0]) + 1), *rest[1:]
        if part == "master":
            return f"master{number}"
        layers = {"first": f"HtrgGAT_layer_ST{number}1", "second": f"HtrgGAT_layer_ST{number}2"}
        head = layers.get(part) or f"pool_h{part.removeprefix('pool_')[0].upper()}{number}"
    else:
        head = _MODULES[head]
    if rest and rest[0] == "norm":  # the graph layers call it ``bn``, the convolution blocks ``bn2``
        return ".".join([head, "bn", *rest[1:]])
    return ".".join([head, *(_PARTS.get(part, part) for part in rest)])

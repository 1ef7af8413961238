"""Whole detectors of other code: SSL_Anti-spoofing and its descendants, AntiDeepfake, the raw AASIST."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moelora_ad.audio import SAMPLE_RATE
from moelora_ad.errors import InputError
from moelora_ad.models.backbones.hubert import HubertBackbone
from moelora_ad.models.backbones.sinc import SincBackbone
from moelora_ad.models.backbones.wav2vec2 import Wav2Vec2Backbone
from moelora_ad.models.backbones.waveform import Normalization
from moelora_ad.models.heads.aasist import AASIST, FRONT
from moelora_ad.models.heads.pooling import Classifier, MeanPooling
from moelora_ad.models.heads.public_names import public_name
from moelora_ad.models.heads.raw_aasist import RawAASIST
from moelora_ad.models.saving.public.contents import Encoder, PublicModel
from moelora_ad.models.saving.public.fairseq import fairseq_encoder
from moelora_ad.models.saving.public.naming import matched, part

AASIST_WINDOW = 64_600
"""Samples of a clip in the public evaluations with AASIST."""
ANTIDEEPFAKE_WINDOW = 10 * SAMPLE_RATE
"""Samples of the shortest clips that its training cuts longer ones to; its evaluation takes whole files."""


def ssl_anti_spoofing(
    tensors: Mapping[str, Tensor], where: str, normalize: bool | None, attention_heads: int | None
) -> PublicModel:
    """XLS-R, fine-tuned, with AASIST on it (Tak et al., arXiv 2202.12233): ``ssl_model.*`` and the head.

    Its waveforms are not normalised, though XLS-R was trained on normalised ones.

    Args:
        tensors: tensors of the whole model.
        where: the checkpoint's name in messages.
        normalize: true for a descendant that was trained on normalised waveforms.
        attention_heads: see `fairseq_encoder`.

    Raises:
        InputError: a tensor is missing, unknown or of another shape, or the head is not AASIST's.
    """
    head = {name: tensor for name, tensor in tensors.items() if not name.startswith("ssl_model.")}
    front = head.get("LL.weight")
    if (
        front is None
        or front.ndim != 2
        or front.shape[0] != FRONT
        or not any(name.startswith("GAT_layer") for name in head)
    ):
        first = min(head, default="none")
        raise InputError(f"{where}: the head on its ssl_model.* is not AASIST (its first tensor is {first})")
    encoder = part(tensors, "ssl_model.")
    encoder = part(encoder, "model.") or encoder
    classifier = AASIST(front.shape[-1])
    _load(classifier, head, where)
    how: Normalization = bool(normalize)
    made = fairseq_encoder(encoder, where, bool(how), attention_heads=attention_heads)
    return _on_encoder("SSL_Anti-spoofing (XLS-R with AASIST)", made, classifier, AASIST_WINDOW, how)


def antideepfake(
    tensors: Mapping[str, Tensor], where: str, normalize: bool | None, attention_heads: int | None
) -> PublicModel:
    """AntiDeepfake of the National Institute of Informatics: ``m_ssl.model.*``, the mean over frames, ``proj_fc``.

    Its waveforms are normalised as fairseq does it, unless ``normalize`` is False.

    Raises:
        InputError: see `ssl_anti_spoofing`.
    """
    head = {name: tensor for name, tensor in tensors.items() if not name.startswith("m_ssl.")}
    how: Normalization = False if normalize is False else "fairseq"
    made = fairseq_encoder(part(tensors, "m_ssl.model."), where, bool(how), attention_heads=attention_heads)
    classifier = MeanPooling(made.config.hidden_size)
    names = {"output.weight": "proj_fc.weight", "output.bias": "proj_fc.bias"}
    classifier.load_state_dict(matched(head, classifier, names, where))
    return _on_encoder("AntiDeepfake (mean over frames, one linear layer)", made, classifier, ANTIDEEPFAKE_WINDOW, how)


def raw_aasist(tensors: Mapping[str, Tensor], where: str) -> PublicModel:
    """AASIST or AASIST-L on the waveform (Jung et al., arXiv 2110.01200). They differ in sizes, which the tensors show,
    and in ratios of pooling, which the tensors do not show.

    Raises:
        InputError: the tensors have other sizes than those of these two, or see `ssl_anti_spoofing`.
    """
    wanted = {name: RawAASIST(70, **arguments) for name, arguments in _SIZES.items()}
    fitting = [name for name, classifier in wanted.items() if _sizes(classifier) == _sizes_told(tensors)]
    if not fitting:
        raise InputError(
            f"{where}: has other sizes than AASIST and AASIST-L: the ratios of its pooling, which are in a "
            "configuration beside it, cannot be derived from its tensors"
        )
    classifier = wanted[fitting[0]]
    _load(classifier, tensors, where)
    return PublicModel(f"{fitting[0]} on the waveform", None, classifier, lambda folder: SincBackbone(), AASIST_WINDOW)


_SIZES: dict[str, dict[str, Any]] = {
    "AASIST": {},
    "AASIST-L": {"channels": 24, "node": 24, "spectral_ratio": 0.4, "temporal_ratio": 0.5, "branch_ratio": 0.7},
}
_TELLING = ("spectral_positions", "branches.0.master", "output.weight")


def _sizes(classifier: RawAASIST) -> list[tuple[int, ...]]:
    state = classifier.state_dict()
    return [tuple(state[name].shape) for name in _TELLING]


def _sizes_told(tensors: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensors[public_name(name)].shape) for name in _TELLING if public_name(name) in tensors]


def _load(classifier: AASIST | RawAASIST, tensors: Mapping[str, Tensor], where: str) -> None:
    names = {name: public_name(name) for name in classifier.state_dict()}
    classifier.load_state_dict(matched(tensors, classifier, names, where))


def _on_encoder(
    layout: str, encoder: Encoder, classifier: Classifier, window: int, normalize: Normalization
) -> PublicModel:
    kind = HubertBackbone if encoder.config.model_type == "hubert" else Wav2Vec2Backbone
    return PublicModel(layout, encoder, classifier, lambda folder: kind(folder, normalize=normalize), window)

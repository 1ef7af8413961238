"""Audio classifiers of transformers with two labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from transformers import AutoFeatureExtractor, PreTrainedConfig, PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from moelora_ad.audio import TRAINING_SAMPLES
from moelora_ad.errors import InputError
from moelora_ad.models.backbones.ast import HOP, WINDOW, ASTBackbone
from moelora_ad.models.backbones.base import Backbone
from moelora_ad.models.backbones.hubert import HubertBackbone
from moelora_ad.models.backbones.pretrained import check_json, check_rate, load_config, load_encoder
from moelora_ad.models.backbones.wav2vec2 import Wav2Vec2Backbone
from moelora_ad.models.backbones.wavlm import WavLMBackbone
from moelora_ad.models.backbones.whisper import WhisperBackbone
from moelora_ad.models.heads.pooling import Classifier, LeadingTokens, ProjectedMean
from moelora_ad.models.saving.public.contents import Encoder, PublicModel
from moelora_ad.models.saving.public.labels import bona_fide_index
from moelora_ad.models.saving.public.naming import matched


class Kind(NamedTuple):
    """The layout of a classifier class of transformers."""

    model_type: str
    encoder: str  # name of the model's attribute
    backbone: Callable[..., Backbone]


KINDS = {
    "Wav2Vec2ForSequenceClassification": Kind("wav2vec2", "wav2vec2", Wav2Vec2Backbone),
    "HubertForSequenceClassification": Kind("hubert", "hubert", HubertBackbone),
    "WavLMForSequenceClassification": Kind("wavlm", "wavlm", WavLMBackbone),
    "WhisperForAudioClassification": Kind("whisper", "encoder", WhisperBackbone),
    "ASTForAudioClassification": Kind("audio-spectrogram-transformer", "audio_spectrogram_transformer", ASTBackbone),
}
_NAMES = {
    **{f"projection.{part}": f"projector.{part}" for part in ("weight", "bias")},
    **{f"mean.output.{part}": f"classifier.{part}" for part in ("weight", "bias")},
}
_AST_NAMES = {
    **{f"norm.{part}": f"classifier.layernorm.{part}" for part in ("weight", "bias")},
    **{f"output.{part}": f"classifier.dense.{part}" for part in ("weight", "bias")},
}


def audio_classifier(folder: Path, name: str, bona_fide: str | None, normalize: bool | None) -> PublicModel:
    """Read a classifier of transformers with two labels.

    Args:
        folder: with ``config.json``, the preprocessor and the weights.
        name: name of its class, one of `KINDS`.
        bona_fide: the label that is bona fide; None to decide by the labels' words.
        normalize: whether waveforms get zero mean and unit variance; None follows the preprocessor.

    Raises:
        InputError: the weights do not fit, or the meaning of the labels is ambiguous.
    """
    kind = KINDS[name]
    config = load_config(folder, None, kind.model_type)
    labels = [str(label) for _, label in sorted(config.id2label.items())]
    index = bona_fide_index(labels, bona_fide, str(folder))
    model_class: type[PreTrainedModel] = getattr(transformers, name)
    model = load_encoder(model_class, config, folder, None, may_miss=[f"{kind.encoder}.masked_spec_embed"], exact=True)
    encoder: PreTrainedModel = getattr(model, kind.encoder)
    tensors = {n: tensor.detach().contiguous() for n, tensor in encoder.state_dict().items()}
    made = Encoder(type(encoder), encoder.config, tensors, _extractor(folder))
    state = {n: tensor for n, tensor in model.state_dict().items() if not n.startswith(f"{kind.encoder}.")}
    layer_weights = state.pop("layer_weights", None)
    if layer_weights is not None and not _weights_raw_layers(config):
        raise InputError(
            f"{folder}: its weighted sum of layers was trained with a last layer that is normalised, as transformers 4 "
            "has it and Whisper; here the sum is over layers as they are"
        )
    last = "classifier.dense" if kind.backbone is ASTBackbone else "classifier"
    for part in ("weight", "bias"):  # spoof first
        state[f"{last}.{part}"] = state[f"{last}.{part}"][[1 - index, index]]
    if kind.backbone is ASTBackbone:
        classifier: Classifier = LeadingTokens(config.hidden_size, epsilon=config.layer_norm_eps)
        names, window = _AST_NAMES, WINDOW + (config.max_length - 1) * HOP
    else:
        classifier = ProjectedMean(config.hidden_size, config.classifier_proj_size)
        names, window = _NAMES, TRAINING_SAMPLES
    classifier.load_state_dict(matched(state, classifier, names, str(folder)))

    def build(place: Path) -> Backbone:
        arguments: dict[str, Any] = {"hidden_states": "last" if layer_weights is None else "weighted"}
        if kind.backbone is WhisperBackbone:
            arguments["pad"] = True
        elif kind.backbone is not ASTBackbone:
            arguments["normalize"] = normalize
        backbone = kind.backbone(place, **arguments)
        if layer_weights is not None:
            backbone.load_state_dict({"layer_weights": layer_weights}, strict=False)
        return backbone

    layout = f"{name} of transformers, {labels[index]!r} as bona fide"
    return PublicModel(layout, made, classifier, build, window)


def _extractor(folder: Path) -> FeatureExtractionMixin:
    try:
        check_json(folder, None, "preprocessor_config.json")
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a faulty file makes transformers fail in many ways
        raise InputError(f"{folder}: its preprocessor cannot be read: {' '.join(str(error).split())}") from None
    check_rate(extractor, folder)
    return extractor


def _weights_raw_layers(config: PreTrainedConfig) -> bool:
    """Whether a weighted sum was trained over the layers' outputs as they are, the last one too: where each layer
    normalises its input (``do_stable_layer_norm``), transformers 4 took the last one after the encoder's normalisation,
    as all versions do for Whisper."""
    if config.model_type == "whisper":
        return False
    version = str(config.transformers_version or "")
    return not config.do_stable_layer_norm or version.partition(".")[0] not in ("", "3", "4")

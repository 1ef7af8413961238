"""The detector and its parts: backbones and classifiers."""

from typing import TYPE_CHECKING

from moelora_ad.lazy import lazy_names

if TYPE_CHECKING:
    from moelora_ad.models.backbones.ast import ASTBackbone
    from moelora_ad.models.backbones.base import Backbone, HiddenStates
    from moelora_ad.models.backbones.hubert import HubertBackbone
    from moelora_ad.models.backbones.sinc import SincBackbone
    from moelora_ad.models.backbones.wav2vec2 import Wav2Vec2Backbone
    from moelora_ad.models.backbones.wav2vec2_bert import Wav2Vec2BertBackbone
    from moelora_ad.models.backbones.wavlm import WavLMBackbone
    from moelora_ad.models.backbones.whisper import WhisperBackbone
    from moelora_ad.models.detector import Detector
    from moelora_ad.models.heads.aasist import AASIST, load_public_aasist
    from moelora_ad.models.heads.pooling import (
        AttentiveStatistics,
        Classifier,
        LeadingTokens,
        MeanPooling,
        ProjectedMean,
        StatisticsPooling,
    )
    from moelora_ad.models.heads.raw_aasist import RawAASIST
    from moelora_ad.models.saving.onnx_export import export_onnx
    from moelora_ad.torch_internals import Constant
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "AASIST",
    "ASTBackbone",
    "AttentiveStatistics",
    "Backbone",
    "Classifier",
    "Constant",
    "Detector",
    "HiddenStates",
    "HubertBackbone",
    "LeadingTokens",
    "MeanPooling",
    "ProjectedMean",
    "RawAASIST",
    "SincBackbone",
    "StatisticsPooling",
    "Wav2Vec2Backbone",
    "Wav2Vec2BertBackbone",
    "WavLMBackbone",
    "WhisperBackbone",
    "export_onnx",
    "load_public_aasist",
]

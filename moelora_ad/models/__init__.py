"""The detector and its parts: backbones and classifiers."""

from moelora_ad.models.aasist import AASIST, load_public_aasist
from moelora_ad.models.backbone import Backbone, Constant
from moelora_ad.models.classifier import AttentiveStatistics, Classifier, MeanPooling
from moelora_ad.models.detector import Detector
from moelora_ad.models.hubert import HubertBackbone
from moelora_ad.models.onnx_export import export_onnx
from moelora_ad.models.wav2vec2 import Wav2Vec2Backbone
from moelora_ad.models.wav2vec2_bert import Wav2Vec2BertBackbone
from moelora_ad.models.wavlm import WavLMBackbone
from moelora_ad.models.whisper import WhisperBackbone

__all__ = [
    "AASIST",
    "AttentiveStatistics",
    "Backbone",
    "Classifier",
    "Constant",
    "Detector",
    "HubertBackbone",
    "MeanPooling",
    "Wav2Vec2Backbone",
    "Wav2Vec2BertBackbone",
    "WavLMBackbone",
    "WhisperBackbone",
    "export_onnx",
    "load_public_aasist",
]

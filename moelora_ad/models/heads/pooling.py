"""The interface of every classifier, and the simple ones."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from moelora_ad.adapters import RemembersArguments


class Classifier(RemembersArguments, nn.Module, ABC):
    """A classifier: from frames to two logits, index 0 spoof, index 1 bona fide.

    A head need not care about the precision of training: its weights and the features that it gets are float32, and it
    runs outside autocast, whatever the encoder is computed in (`Detector.forward`). It must not change that: in half
    precision a score has few bits, and many trials get the same one.
    """

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, 2) of features (B, frames, width); ``lengths`` (B,) are the valid frames, None for all."""


class AttentiveStatistics(Classifier):
    """Attention-weighted mean and standard deviation over frames, then one linear layer (Okabe et al. 2018).

    Args:
        width: features of a frame of the encoder.
        hidden: units of the attention.
    """

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.output = nn.Linear(2 * width, 2)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        scores = self.attention(features)
        if lengths is not None:
            scores = scores.masked_fill(~_valid(features, lengths), -torch.inf)
        weights = scores.softmax(dim=1)
        return self.output(_statistics(features, weights))


class StatisticsPooling(Classifier):
    """Mean and, unless that is turned off, standard deviation over frames (Snyder et al. 2018), standardised, then one
    linear layer.

    Batch normalisation without weights of its own standardises the statistics: all have the same weight, whatever their
    scale. The head is thus a logistic regression on pooled states, and starts uninformed: all logits are 0.

    Args:
        width: features of a frame of the encoder.
        dropout: share of the statistics that a step of training leaves out.
        deviation: whether standard deviations are among the statistics.
        running: whether the running means and variances standardise in training, too, to start from a logistic
            regression that was fitted in this way.
    """

    def __init__(self, width: int, dropout: float = 0.2, deviation: bool = True, running: bool = False) -> None:
        super().__init__()
        statistics = 2 * width if deviation else width
        self.deviation = deviation
        self.norm = _Standardised(statistics, running)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(statistics, 2)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            weights = features.new_full((1, 1, 1), 1 / features.shape[1])
        else:
            weights = _valid(features, lengths) / lengths.view(-1, 1, 1)
        statistics = _statistics(features, weights) if self.deviation else (features * weights).sum(dim=1)
        return self.output(self.dropout(self.norm(statistics)))


class _Standardised(nn.BatchNorm1d):
    """Batch normalisation without weights that also takes a batch of one utterance, which has no variance: it is
    normalised by the running statistics, and does not update them.

    Args:
        features: number of features.
        running: normalise by the running statistics in training, too, which its batches then update.
    """

    def __init__(self, features: int, running: bool) -> None:
        super().__init__(features, affine=False)
        self.running = running

    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        # With `training.batch_norm.SyncedBatchNorm` the other processes have utterances, too, and wait for this one.
        alone = self.training and len(input) == 1 and not hasattr(self, "own_class")
        if self.training and self.running and not alone:
            with torch.no_grad():
                super().forward(input)
        if self.running or alone:
            return (input - self.running_mean) * (self.running_var + self.eps).rsqrt()
        return super().forward(input)


class MeanPooling(Classifier):
    """Mean over frames, then one linear layer: the smallest head.

    Args:
        width: features of a frame of the encoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, 2)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            return self.output(features.mean(dim=1))
        total = (features * _valid(features, lengths)).sum(dim=1)
        return self.output(total / lengths.unsqueeze(1))


class ProjectedMean(Classifier):
    """A linear layer on each frame, the mean over frames, then another one: transformers' head of audio classification
    for wav2vec 2.0, HuBERT, WavLM and Whisper.

    Args:
        width: features of a frame of the encoder.
        hidden: features between the two layers.
    """

    def __init__(self, width: int, hidden: int = 256) -> None:
        super().__init__()
        self.projection = nn.Linear(width, hidden)
        self.mean = MeanPooling(hidden)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.mean(self.projection(features), lengths)


class LeadingTokens(Classifier):
    """The mean of the tokens that lead a sequence, normalised, then one linear layer: transformers' head for the Audio
    Spectrogram Transformer, whose first two tokens stand for the whole clip.

    Args:
        width: features of a token.
        tokens: number of leading tokens.
        epsilon: added to the variance in the normalisation.
    """

    def __init__(self, width: int, tokens: int = 2, epsilon: float = 1e-12) -> None:
        super().__init__()
        self.tokens = tokens
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.output = nn.Linear(width, 2)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.output(self.norm(features[:, : self.tokens].mean(dim=1)))


def _statistics(features: Tensor, weights: Tensor) -> Tensor:
    """Mean and standard deviation (B, 2 width) of features (B, frames, width); weights (B, frames, 1) sum to 1."""
    mean = (weights * features).sum(dim=1)
    variance = (weights * (features - mean.unsqueeze(1)).square()).sum(dim=1)
    return torch.cat([mean, variance.clamp(min=1e-6).sqrt()], dim=1)


def _valid(features: Tensor, lengths: Tensor) -> Tensor:
    """Mask (B, frames, 1), true on valid frames."""
    return (torch.arange(features.shape[1], device=features.device) < lengths.unsqueeze(1)).unsqueeze(-1)

"""Metrics that gather their inputs over batches and processes."""

import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from moelora_ad.evaluation.metrics.costs import AsvErrorRates, DetectionCosts, TandemCosts2019, TandemCosts2021
from moelora_ad.evaluation.metrics.curve import ScoreCurve
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.float64 import float64_or_float32


class _Gathered(Metric):
    """A metric whose states are lists of tensors, joined over batches and processes."""

    is_differentiable = False
    full_state_update = False

    lists: tuple[str, ...] = ()

    def _add_list(self, name: str) -> None:
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self.lists += (name,)

    def _state_type(self, name: str) -> torch.dtype:
        # Nothing is lost in float32: of a device without float64, scores are float32 at most.
        return float64_or_float32(self.device)

    def _append(self, name: str, values: Tensor) -> None:
        # The values stay on their device: moving each batch would mean waiting for it.
        getattr(self, name).append(values.detach().to(self._state_type(name)))

    def _joined(self, name: str) -> Tensor:
        return self._in_one(name).cpu()

    def _in_one(self, name: str) -> Tensor:
        # Values may be of several devices: scores of an earlier run are on the CPU, those of this one on a GPU.
        values = getattr(self, name)
        if isinstance(values, list) and len({one.device for one in values}) > 1:
            values = [one.to(self.device) for one in values]
        return dim_zero_cat(values)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        # A process without data must contribute an empty tensor of the right type, or the others hang.
        for name in self.lists:
            if len(getattr(self, name)) == 0:
                self._append(name, torch.empty(0))
            setattr(self, name, [self._in_one(name).to(self.device)])
        super().sync(*args, **kwargs)


class LabelledScores(_Gathered):
    """The scores and labels of all batches and processes, for trials that are not listed beforehand."""

    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_list("scores")
        self._add_list("labels")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add a batch: scores (B,), higher is more bona fide; labels (B,), 1 for bona fide and 0 for spoof.

        Raises:
            ScoreError: The two differ in length, or are no lists.
        """
        if scores.shape != labels.shape or scores.ndim != 1:
            raise ScoreError(f"need one label for each score, not {tuple(labels.shape)} for {tuple(scores.shape)}")
        self._append("scores", scores)
        self._append("labels", labels)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return scores (n,) and labels (n,), float64."""
        return self._joined("scores"), self._joined("labels")


class _ScoreFigure(LabelledScores):
    """A figure of `ScoreCurve` over batches and processes.

    Call ``update`` for every batch and ``compute`` at the end; calling the metric itself also computes the figure of
    the one batch, which fails if the batch has one class only.
    """

    higher_is_better = False

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the figure over all scores that were added, a scalar.

        Raises:
            ScoreError: see `equal_error_rate`.
        """
        curve = ScoreCurve(self._joined("scores").numpy(), self._joined("labels").numpy())
        return torch.tensor(self._figure(curve), dtype=self._state_type("scores"), device=self.device)

    @abstractmethod
    def _figure(self, curve: ScoreCurve) -> float: ...


class EqualErrorRate(_ScoreFigure):
    """`equal_error_rate`, in [0, 1], over batches and processes.

    Example:
        >>> metric = EqualErrorRate()
        >>> metric.update(torch.tensor([2.0, -1.0]), torch.tensor([1, 0]))
        >>> metric.update(torch.tensor([0.5, 1.0]), torch.tensor([1, 0]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def _figure(self, curve: ScoreCurve) -> float:
        return curve.equal_error_rate().eer


class MinDetectionCost(_ScoreFigure):
    """`ScoreCurve.min_dcf`, the least normalised detection cost, over batches and processes."""

    def __init__(self, costs: DetectionCosts | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.costs = costs or DetectionCosts()

    def _figure(self, curve: ScoreCurve) -> float:
        return curve.min_dcf(self.costs).cost


class ActualDetectionCost(_ScoreFigure):
    """`ScoreCurve.act_dcf`, the normalised detection cost at the Bayes threshold, over batches and processes.

    The scores must be log-likelihood ratios, that is calibrated.
    """

    def __init__(self, costs: DetectionCosts | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.costs = costs or DetectionCosts()

    def _figure(self, curve: ScoreCurve) -> float:
        return curve.act_dcf(self.costs)


class MinTandemDetectionCost(_ScoreFigure):
    """`ScoreCurve.min_tdcf`, the least normalised tandem detection cost, over batches and processes.

    Args:
        asv: The error rates of the speaker verification system.
        costs: The form of 2019 or, if not given, that of 2021.
    """

    def __init__(
        self, asv: AsvErrorRates, costs: TandemCosts2019 | TandemCosts2021 | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.asv = asv
        self.costs = costs or TandemCosts2021()

    def _figure(self, curve: ScoreCurve) -> float:
        return curve.min_tdcf(self.asv, self.costs).cost


class LogLikelihoodRatioCost(_ScoreFigure):
    """`ScoreCurve.cllr`, in bits, over batches and processes; the scores must be calibrated."""

    def _figure(self, curve: ScoreCurve) -> float:
        return curve.cllr()


class MinLogLikelihoodRatioCost(_ScoreFigure):
    """`ScoreCurve.min_cllr`, in bits, over batches and processes."""

    def _figure(self, curve: ScoreCurve) -> float:
        return curve.min_cllr()


class AreaUnderCurve(_ScoreFigure):
    """`ScoreCurve.auc`, in [0, 1], over batches and processes."""

    higher_is_better = True

    def _figure(self, curve: ScoreCurve) -> float:
        return curve.auc()


class TrialScores(_Gathered):
    """The score of every trial, each exactly once, from batches in any order and on any process.

    Args:
        num_trials: How many trials the set has; their indices are 0 to ``num_trials - 1``.
        complete: Whether every trial must have been scored. A run over a part of the set (Lightning's sanity check,
            ``limit_test_batches``) needs ``False``; a trial scored twice is refused even then.

    Example:
        >>> metric = TrialScores(num_trials=3)
        >>> metric.update(torch.tensor([2, 0]), torch.tensor([0.5, -1.0]))
        >>> metric.update(torch.tensor([1]), torch.tensor([3.0]))
        >>> metric.compute()
        (tensor([0, 1, 2]), tensor([-1.0000,  3.0000,  0.5000], dtype=torch.float64))
    """

    higher_is_better = None
    indices: list[Tensor]
    scores: list[Tensor]

    def __init__(self, num_trials: int, complete: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_trials = num_trials
        self.complete = complete
        self._add_list("indices")
        self._add_list("scores")

    def _state_type(self, name: str) -> torch.dtype:
        return torch.int64 if name == "indices" else super()._state_type(name)

    def update(self, indices: Tensor, scores: Tensor) -> None:
        """Add a batch: the trials' indices (B,), integers, and their scores (B,)."""
        if indices.shape != scores.shape or indices.ndim != 1:
            raise ValueError(f"need one score for each index, not {tuple(scores.shape)} for {tuple(indices.shape)}")
        self._append("indices", indices)
        self._append("scores", scores)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return indices (n,) int64, ascending, and their scores (n,) float64, both on the CPU.

        Raises:
            RuntimeError: A trial was scored twice, or is missing in a complete run; the message has their numbers. Or
                an index is not that of a trial.
        """
        indices, order = self._joined("indices").sort()
        outside = int(((indices < 0) | (indices >= self.num_trials)).sum())
        if outside:
            raise RuntimeError(f"{outside} trial indices are outside 0 to {self.num_trials - 1}")
        times_scored = torch.bincount(indices, minlength=self.num_trials)
        repeated = int((times_scored > 1).sum())
        missing = int((times_scored == 0).sum()) if self.complete else 0
        if repeated or missing:
            raise RuntimeError(
                f"of {self.num_trials} trials, {missing} have no score and {repeated} were scored more than once"
            )
        return indices, self._joined("scores")[order]

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        # This overrides a private method of torchmetrics, which turns results with one element into scalars: a set of
        # one trial must stay a list, also after unpickling, when torchmetrics wraps its methods again.
        wrapped = super()._wrap_compute(compute)
        return functools.wraps(compute)(lambda: tuple(value.reshape(-1) for value in wrapped()))


class TrialFailures(_Gathered):
    """The reasons why trials could not be read, from batches in any order and on any process.

    Example:
        >>> metric = TrialFailures()
        >>> metric.update([(4, "no such file: a.flac"), (1, "b.flac is empty")])
        >>> metric.compute()
        {1: 'b.flac is empty', 4: 'no such file: a.flac'}
    """

    higher_is_better = None
    indices: list[Tensor]
    reasons: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_list("indices")
        self._add_list("reasons")

    def _state_type(self, name: str) -> torch.dtype:
        return torch.int64 if name == "indices" else torch.uint8

    def update(self, failures: Sequence[tuple[int, str]]) -> None:
        """Add the indices of trials, each with the reason in one line."""
        if failures:
            text = "".join(f"{reason}\n" for _, reason in failures)
            self._append("indices", torch.tensor([index for index, _ in failures]))
            self._append("reasons", torch.tensor(list(text.encode())))

    def compute(self) -> dict[int, str]:
        """Return the reasons by index, ascending; for a trial that was added twice, the last reason."""
        if not len(self.indices):
            return {}
        reasons = bytes(self._joined("reasons").tolist()).decode().split("\n")
        return dict(sorted(zip(self._joined("indices").tolist(), reasons[:-1], strict=True)))

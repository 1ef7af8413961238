"""Meta-learning for unseen attacks: in every step some attacks stand for the unseen ones."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar, cast

import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from moelora_ad.corpora import SPOOF, TrialList
from moelora_ad.data.data_module import AudioDeepfakeDataModule, known_data
from moelora_ad.data.dataset import Batch, FailedTrial
from moelora_ad.errors import InputError
from moelora_ad.training.batch_norm import uncounted
from moelora_ad.training.losses.loss_module import LossModule, SharedLoss

Result = TypeVar("Result")
Gradients = Sequence[Tensor | None]  # of the trainable parameters in their order; None for one without a gradient

_BONA_FIDE, _FAILED = -1, -2  # in place of the number of an attack
_NO_TRIAL = -1  # in place of the index of a trial that could not be read
_OF_SPLITS = 1  # keeps these draws apart from the sampler's, which are keyed by (seed, epoch)


class MLDG:
    """Meta-learning for domain generalisation with spoofing attacks as domains (Li et al., arXiv 1710.03463, algorithm
    1; with low-rank adapters arXiv 2502.10838).

    Each step splits the attacks of the batch into meta-train and meta-test and shares out the bona fide trials in
    proportion, by draws that are keyed by (seed, step) alone. With F the loss of the meta-train part and G that of the
    meta-test part, the optimiser gets the gradient of

        F(theta) + beta G(theta - alpha grad F(theta)).

    First order takes the gradient of G where G is evaluated; second order differentiates the inner step too. The inner
    step changes a copy of the parameters, and only the optimiser changes the parameters themselves: clipping,
    accumulation, mixed precision, schedules and checkpoints work as usual in Lightning. All processes share one split
    of their batches and one inner step. A batch whose spoofs are of a single attack makes an ordinary step.

    The losses of the two parts are logged as ``train/loss`` and ``train/meta_test_loss``. Auxiliary losses, which are
    logged too, are part of both F and G.

    Args:
        inner_lr: alpha, learning rate of the inner step of gradient descent.
        beta: weight of the meta-test loss.
        meta_test_share: share of a batch's attacks that are meta-test; at least one is meta-test and one meta-train.
        second_order: differentiate the inner step: exact, more expensive, and without fused attention in meta-train.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(
        self, inner_lr: float = 0.01, beta: float = 1.0, meta_test_share: float = 0.33, second_order: bool = False
    ) -> None:
        for name, value in (("inner_lr", inner_lr), ("beta", beta)):
            if not (value >= 0 and np.isfinite(value)):
                raise InputError(f"MLDG: {name} is {value}: give a number of at least 0")
        if not 0 < meta_test_share < 1:
            raise InputError(
                f"MLDG: meta_test_share is {meta_test_share}: give a share of the attacks above 0, below 1"
            )
        self.inner_lr = inner_lr
        self.beta = beta
        self.meta_test_share = meta_test_share
        self.second_order = second_order
        self._attacks: NDArray[np.int64] = np.zeros(0, np.int64)  # (trials,) number of the attack, or _BONA_FIDE

    def prepare(self, module: LossModule) -> None:
        """Take the attacks from the list of training trials, which must have been read.

        Raises:
            InputError: there are fewer than two attacks, or training is set up in a way that MLDG does not work with.
        """
        trainer = module.trainer
        strategy = trainer.strategy
        if not isinstance(strategy, SingleDeviceStrategy) and type(strategy) is not DDPStrategy:
            raise InputError(f"MLDG does not work with {type(strategy).__name__}: use one device or the strategy ddp")
        if self.second_order and module.auxiliary is not None and trainer.world_size > 1:
            raise InputError("MLDG: second_order with auxiliary losses works in one process: use first order, or one")
        data = known_data(trainer)
        if data is None:
            raise InputError(
                "MLDG needs to know the attacks of its trials: give Trainer an AudioDeepfakeDataModule as datamodule "
                "in place of DataLoaders, or leave out meta_learning"
            )
        trials = data.train_trials
        assert trials is not None
        self._attacks, names = attacks_of(trials)
        if len(names) < 2:
            raise InputError(
                f"MLDG needs spoofs of two attacks to train on, data.train has {' and '.join(names) or 'none'}: "
                "give a corpus that names more, or leave out model.meta_learning"
            )

    def training_loss(self, module: LossModule, batch: Batch) -> SharedLoss:
        """Return F + beta G of a batch. The backward pass of ``own`` gives the parameters the gradients of MLDG."""
        parts = self._parts(module, batch)
        if parts is None:
            return module.training_loss(batch)
        meta_train, meta_test = parts
        names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        parameters: list[Tensor] = [module.get_parameter(name) for name in names]

        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if self.second_order else nullcontext():
            loss = _loss(module, meta_train)
            gradients = _gradients(module, loss.own, parameters, create_graph=self.second_order)
        moved = self._inner_step(module, parameters, gradients)

        def meta_test_pass() -> tuple[SharedLoss, Gradients]:
            there = _loss(module, meta_test, prefix="train/meta_test_")
            return there._replace(own=there.own.detach()), _gradients(module, there.own, moved)

        meta_test_loss, there = with_parameters(module, dict(zip(names, moved, strict=True)), meta_test_pass)
        if self.second_order:
            with sdpa_kernel(SDPBackend.MATH):  # gradient checkpointing runs layers again, as they ran before
                there = self._through_inner_step(module, parameters, gradients, there)
        totals = [_sum(f, g, self.beta) for f, g in zip(gradients, there, strict=True)]
        used = [(p, total.detach()) for p, total in zip(parameters, totals, strict=True) if total is not None]
        value = loss.own.detach() + self.beta * meta_test_loss.own
        handed = cast(Tensor, _Hand.apply(value, [total for _, total in used], *(p for p, _ in used)))
        return SharedLoss(handed, loss.of_all + self.beta * meta_test_loss.of_all, loss.parts)

    def _inner_step(self, module: LossModule, parameters: Sequence[Tensor], gradients: Gradients) -> list[Tensor]:
        """theta' = theta - alpha grad F(theta), leaves of a new graph."""
        moved = []
        for parameter, step in zip(parameters, _mean_over_processes(module, parameters, gradients), strict=True):
            there = parameter.detach().clone()
            if step is not None:
                if _scaler(module) is not None:  # beyond half precision's range: the optimiser will skip this step
                    step = step.where(step.isfinite(), 0.0)
                there -= self.inner_lr * step
            moved.append(there.requires_grad_())
        return moved

    def _through_inner_step(
        self, module: LossModule, parameters: Sequence[Tensor], gradients: Gradients, there: Gradients
    ) -> list[Tensor | None]:
        """grad G(theta') - alpha H grad G(theta') with H the Hessian of F at theta, by a second backward pass."""
        direction = _mean_over_processes(module, parameters, there)
        pairs = [(f, v) for f, v in zip(gradients, direction, strict=True) if f is not None and v is not None]
        product = torch.stack([(f * v).sum() for f, v in pairs]).sum()
        if not product.requires_grad:  # a linear F: none of the trials of this process are meta-train
            return list(there)
        curvature = _gradients(module, product, parameters)
        return [_sum(g, h, -self.inner_lr) for g, h in zip(there, curvature, strict=True)]

    def _parts(self, module: LossModule, batch: Batch) -> tuple[Batch, Batch] | None:
        """The meta-train and meta-test parts of this process's batch; None if the processes together have fewer than
        two attacks."""
        trainer = module.trainer
        failed = [failure.trial for failure in batch.failures]
        trials = np.where(np.isin(batch.trials.numpy(), failed), _NO_TRIAL, batch.trials.numpy())
        if trainer.world_size > 1:
            # Processes take turns in this order, which is that of the same batch in a single process.
            of_all = cast(Tensor, module.all_gather(torch.from_numpy(trials).to(module.device)))
            trials = of_all.reshape(-1, len(trials)).T.flatten().cpu().numpy()
        attacks = np.where(trials == _NO_TRIAL, _FAILED, self._attacks[trials])
        generator = np.random.default_rng([_datamodule(module).seed, trainer.global_step, _OF_SPLITS])
        meta_test = split(attacks, self.meta_test_share, generator)
        if meta_test is None:
            return None
        is_own = np.arange(len(trials)) % trainer.world_size == trainer.global_rank
        meta_train = ~meta_test & (attacks != _FAILED)
        return (
            trials_of_part(batch, np.flatnonzero(meta_train[is_own])),
            trials_of_part(batch, np.flatnonzero(meta_test[is_own])),
        )


def attacks_of(trials: TrialList) -> tuple[NDArray[np.int64], list[str]]:
    """The number of each trial's attack (trials,), -1 for bona fide, and the names of the attacks.

    The same name in two corpora stands for two attacks, and the spoofs of a corpus that have no attack's name count as
    one attack.
    """
    spoofs = np.flatnonzero(trials.labels == SPOOF)
    corpus, attack = trials.column("corpus"), trials.column("attack")
    pairs = np.stack([corpus.codes[spoofs], attack.codes[spoofs]])
    different, numbers = np.unique(pairs, axis=1, return_inverse=True)
    attacks = np.full(len(trials), _BONA_FIDE, np.int64)
    attacks[spoofs] = numbers.reshape(-1)
    names = [f"{attack.values[a] or 'unnamed'} of {corpus.values[c] or 'an unnamed corpus'}" for c, a in different.T]
    return attacks, names


def split(attacks: NDArray[np.int64], share: float, generator: np.random.Generator) -> NDArray[np.bool_] | None:
    """Choose the trials that are meta-test.

    Args:
        attacks: (n,) number of the attack of each trial, -1 for bona fide, -2 for trials that could not be read.
        share: share of the attacks, rounded to whole ones; at least one is meta-test, and one is not.
        generator: draws the attacks, and bona fide trials in the same proportion as the spoofs; of two or more bona
            fide trials, each part gets at least one.

    Returns:
        (n,) bool, true for meta-test; None if there are fewer than two attacks.
    """
    present = np.unique(attacks[attacks >= 0])
    if len(present) < 2:
        return None
    count = min(max(1, round(share * len(present))), len(present) - 1)
    meta_test = np.isin(attacks, generator.permutation(present)[:count])
    bona_fide = np.flatnonzero(attacks == _BONA_FIDE)
    count = round(len(bona_fide) * meta_test.sum() / (attacks >= 0).sum())
    if len(bona_fide) > 1:
        count = min(max(1, count), len(bona_fide) - 1)
    meta_test[generator.permutation(bona_fide)[:count]] = True
    return meta_test


def trials_of_part(batch: Batch, chosen: NDArray[np.integer]) -> Batch:
    """The trials of a batch at the positions ``chosen`` (n,). If there are none, the first trial, marked as failed: the
    process then takes part in collective calls and adds nothing to the cross entropy; auxiliary losses do see its
    gates."""
    rows = torch.from_numpy(chosen if len(chosen) else np.zeros(1, np.int64))
    clips = len(batch.waveforms) // len(batch.trials)
    rows_of_clips = (rows.unsqueeze(1) * clips + torch.arange(clips)).flatten()
    trials = batch.trials[rows]
    failures = [] if len(chosen) else [FailedTrial(int(trials[0]), "not of this part")]
    lengths = None if batch.lengths is None else _picked(batch.lengths, rows_of_clips)
    waveforms, labels = _picked(batch.waveforms, rows_of_clips), _picked(batch.labels, rows)
    read = torch.ones_like(labels, dtype=torch.bool) if len(chosen) else torch.zeros_like(labels, dtype=torch.bool)
    return Batch(waveforms, lengths, labels, trials, failures, read)


def _picked(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor on any device, without waiting for a GPU."""
    is_gpu = values.device.type == "cuda"
    return values[(rows.pin_memory() if is_gpu else rows).to(values.device, non_blocking=is_gpu)]


class _At(nn.Module):
    """Lets `functional_call` swap the parameters of a module while any function of it runs."""

    def __init__(self, module: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self) -> Any:
        return self.function()


def with_parameters(module: nn.Module, values: dict[str, Tensor], function: Callable[[], Result]) -> Result:
    """Return the result of ``function()``, called while ``values`` replace the module's parameters of these names.

    A backward pass belongs inside the function: gradient checkpointing calls the module again from there.
    """
    swapped = {f"module.{name}": value for name, value in values.items()}
    return functional_call(_At(module, function), swapped, ())


class _Hand(torch.autograd.Function):
    """A value whose backward pass returns gradients that were computed before."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Any:
        return None, None, *(factor * gradient for gradient in ctx.gradients)


def _loss(module: LossModule, part: Batch, prefix: str = "train/") -> SharedLoss:
    with nullcontext() if part.num_read else uncounted(module):
        return module.training_loss(part, prefix)


def _gradients(module: LossModule, loss: Tensor, parameters: Sequence[Tensor], create_graph: bool = False) -> Gradients:
    """The gradients of a loss of this process, computed with the gradient scaler, if there is one, and unscaled."""
    scaler = _scaler(module)
    scale = None if scaler is None else scaler.scale(torch.ones((), device=loss.device))
    with torch.autocast(loss.device.type, enabled=False):  # the backward pass has the types of the forward pass
        gradients = torch.autograd.grad(
            loss if scale is None else loss * scale, list(parameters), create_graph=create_graph, allow_unused=True
        )
        if scale is None:
            return gradients
        return [None if gradient is None else gradient / scale for gradient in gradients]


def _mean_over_processes(module: LossModule, parameters: Sequence[Tensor], gradients: Gradients) -> Gradients:
    if module.trainer.world_size == 1:
        return [None if gradient is None else gradient.detach() for gradient in gradients]
    flat = torch.cat(
        [
            (torch.zeros_like(p) if g is None else g.detach()).flatten()
            for p, g in zip(parameters, gradients, strict=True)
        ]
    )
    mean = cast(Tensor, module.trainer.strategy.reduce(flat, reduce_op="mean"))
    pieces = mean.split([parameter.numel() for parameter in parameters])
    return [piece.view_as(parameter) for piece, parameter in zip(pieces, parameters, strict=True)]


def _sum(first: Tensor | None, second: Tensor | None, factor: float) -> Tensor | None:
    if second is None:
        return first
    return factor * second if first is None else first + factor * second


def _scaler(module: LossModule) -> torch.amp.GradScaler | None:
    return getattr(module.trainer.precision_plugin, "scaler", None)


def _datamodule(module: LossModule) -> AudioDeepfakeDataModule:
    return module.trainer.datamodule  # type: ignore[attr-defined]

"""Records the routing of gates and experts in every validation, in the run's folder and its loggers."""

import io
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matplotlib.image
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from moelora_ad.adapters import Decision, RoutingRecord, adapted_sites, singular_values, watch_gates
from moelora_ad.data.data_module import known_data
from moelora_ad.data.dataset import Batch
from moelora_ad.data.trainer_state import is_fast_dev_run, run_directory, shards_the_model
from moelora_ad.errors import counted
from moelora_ad.files import written_whole
from moelora_ad.lightning_internals import logged_step
from moelora_ad.runs.record import DEV
from moelora_ad.torch_internals import undoes_scaling
from moelora_ad.training.callbacks.routing_figures import COLLAPSED, SiteFigures, by_figure, overview, write_figures
from moelora_ad.training.callbacks.routing_plot import routing_heatmaps
from moelora_ad.training.detection_module import DetectionModule

FOLDER = "routing"
HEATMAPS = "routing/heatmaps"


class RoutingLog(Callback):
    """Watches the gates and experts of a mixture while it is trained; does nothing for a model without gates.

    Every validation of a fit gives, for each adapted projection, mean weight, top-1 share, output norm and largest
    singular value of each expert, and entropy, effective number of experts and load balance of the gate (see
    `adapters.SiteRouting`). They are computed on the development set in evaluation mode, without the gate's noise, over
    all processes, and written as follows:

    - all of them to ``RUN/routing/epoch03.json``, and as heatmaps to ``RUN/routing/epoch03.png``, which W&B and
      TensorBoard get as ``routing/heatmaps`` (named ``epoch03-step51`` for a validation within an epoch);
    - means over projections as ``routing/NAME``, and over layers as ``routing/NAME/PROJECTION``, to every logger;
    - all of them as ``routing_by_site/NAME/SITE/expert_I`` to every logger but ``CSVLogger``, which has a single table:
      thousands of columns, empty in the row of every step, would make it useless.

    Norms of the gradients, before they are clipped, are logged every ``trainer.log_every_n_steps`` steps as
    ``gradients/gates``, ``gradients/experts`` and, over all projections, ``gradients/expert_I``. With strategies that
    shard parameters (FSDP, DeepSpeed) each process has only a part of them, and no gradient norms are logged.

    When one expert takes more than 95 % of the decisions, with a mean weight nearer to 1 than to 1 / N, in more than
    half of the projections, a warning is printed on standard error.

    Args:
        most_batches: maximum number of batches to watch. Of a larger development set every n-th batch is watched, the
            same ones in every validation and for any number of processes.
    """

    def __init__(self, most_batches: int = 64) -> None:
        if most_batches < 1:
            raise ValueError(f"most_batches is {most_batches}: watch at least one batch")
        self.most_batches = most_batches
        self._watching = ExitStack()
        self._record: RoutingRecord | None = None
        self._spectra: dict[str, Tensor] = {}
        self._num_trials = 0
        self._collapsed = False

    # Gradients

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if shards_the_model(trainer) and _gated(_encoder(pl_module)):
            rank_zero_info("RoutingLog: no gradient norms, because the strategy shards the parameters")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_logged = every and ((trainer.global_step + 1) % every == 0 or trainer.should_stop)
        if not is_logged or shards_the_model(trainer):
            return
        encoder = _encoder(pl_module)
        if not _gated(encoder):
            return
        norms = gradient_norms(encoder)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and undoes_scaling(optimizer):  # for other optimisers Lightning has undone the scale
            norms = {name: norm / scaler.get_scale() for name, norm in norms.items()}
        # The strategy has averaged the gradients, so every process has the same norms.
        pl_module.log_dict(
            {f"gradients/{name}": norm for name, norm in norms.items()},
            on_step=True,
            on_epoch=False,
            rank_zero_only=True,
            batch_size=1,
        )

    # Gates

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        within_fit = trainer.state.fn == "fit" and not trainer.sanity_checking and not is_fast_dev_run(trainer)
        self._record = RoutingRecord() if within_fit and _gated(_encoder(pl_module)) else None
        self._spectra, self._num_trials = {}, 0

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # An idle pass has no trials.
        if self._record is not None and len(batch.trials) and self._is_watched(trainer, batch_idx):
            self._num_trials += len(batch.trials)
            self._watching.enter_context(watch_gates(_encoder(pl_module), self._see))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self._watching.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._watching.close()

    def _is_watched(self, trainer: Trainer, batch_idx: int) -> bool:
        """Whether a batch is watched. Processes take turns in one list of batches, which does not depend on how many
        processes there are."""
        data = known_data(trainer)
        number = batch_idx * trainer.world_size + trainer.global_rank
        if data is None:
            num_batches = trainer.world_size * sum(trainer.num_val_batches)
            if num_batches == float("inf"):
                return number < self.most_batches
        else:
            num_batches = -(-len(data.eval_trials[DEV]) // data.eval_batch_size)
        return number % -int(-num_batches // self.most_batches) == 0

    def _see(self, decision: Decision) -> None:
        assert self._record is not None
        self._record.add(decision)
        # Computed here, because sharded parameters are whole within the forward pass.
        if decision.site not in self._spectra:
            self._spectra[decision.site] = singular_values(decision.layer)[:, 0]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        record, self._record = self._record, None
        if record is None:
            return
        record.reduce(_encoder(pl_module), lambda sums: _total(trainer, sums))
        counts = torch.tensor([self._num_trials], device=pl_module.device)
        num_trials = int(_total(trainer, counts))
        if not trainer.is_global_zero:
            return
        routing = record.sites()
        if not routing:  # the limit of batches left nothing to watch
            return
        sites = {site: SiteFigures.of(figures, self._spectra[site]) for site, figures in routing.items()}
        means = overview(sites)
        pl_module.log_dict(means, rank_zero_only=True, batch_size=1)
        self._warn(trainer, sites)
        name = _name(trainer)
        path = run_directory(trainer) / FOLDER / f"{name}.json"
        num_decisions = next(iter(routing.values())).num_decisions
        write_figures(path, sites, trainer.current_epoch, trainer.global_step, num_trials, num_decisions)
        title = f"{name}: routing on the development set ({counted(num_trials, 'utterance')})"
        png = routing_heatmaps(sites, title)
        with written_whole(path.with_suffix(".png")) as unfinished:
            unfinished.write_bytes(png)
        _log(trainer, sites, png, path.with_suffix(".png"))

    def _warn(self, trainer: Trainer, sites: dict[str, SiteFigures]) -> None:
        """Warn of a collapse once, and again only if the experts have shared the decisions in between."""
        leaders = [figures.collapsed_to for figures in sites.values()]
        taken = [leader for leader in leaders if leader is not None]
        before, self._collapsed = self._collapsed, 2 * len(taken) > len(sites)
        if self._collapsed and not before:
            most = max(sorted(set(taken)), key=taken.count)
            line = (
                f"warning: epoch {trainer.current_epoch}: one expert takes more than {COLLAPSED:.0%} of the decisions "
                f"in {len(taken)} of {counted(len(sites), 'projection')} (expert {most} in {taken.count(most)} of "
                "them); to make them share: model.adaptation auxiliary.importance (auxiliary.load_balance with top_k), "
                "gate noise, or a lower model.gate_lr"
            )
            Console(file=sys.stderr, soft_wrap=True).print(line, markup=False, highlight=False)


def gradient_norms(encoder: nn.Module) -> dict[str, Tensor]:
    """Euclidean norms of the gradients of all gates (``gates``), of all experts (``experts``), and of the experts with
    the same number in all projections (``expert_0``, ...). Groups without gradients are left out."""
    gates: dict[int, Tensor] = {}  # projections may share a gate
    experts: dict[int, list[Tensor]] = {}
    for _, site in adapted_sites(encoder):
        gates |= {id(p): p.grad for p in (site.gate.parameters() if site.gate else ()) if p.grad is not None}
        for number, expert in enumerate(site.lora_experts()):
            experts.setdefault(number, []).extend(p.grad for p in expert.parameters() if p.grad is not None)
    groups = {"gates": list(gates.values()), "experts": [grad for grads in experts.values() for grad in grads]}
    groups |= {f"expert_{number}": grads for number, grads in sorted(experts.items())}
    return {name: get_total_norm(grads) for name, grads in groups.items() if grads}


def _log(trainer: Trainer, sites: dict[str, SiteFigures], png: bytes, path: Path) -> None:
    """Send loggers what they get besides the means: all figures, and the heatmaps."""
    step = logged_step(trainer)
    tables = by_figure(sites)
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            continue
        if isinstance(logger, WandbLogger):  # every call adds a row to its history
            logger.log_metrics({name: value for table in tables.values() for name, value in table.items()}, step)
            logger.log_image(HEATMAPS, [str(path)], step)
            continue
        for table in tables.values():  # MLflow takes at most 1,000 metrics in a call
            logger.log_metrics(table, step)
        if isinstance(logger, TensorBoardLogger):
            image = matplotlib.image.imread(io.BytesIO(png))[..., :3]
            logger.experiment.add_image(HEATMAPS, image, step, dataformats="HWC")


def _name(trainer: Trainer) -> str:
    """Name of the present validation: the epoch, as checkpoints count it, and the step too if it is within an epoch."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    name = f"epoch{trainer.current_epoch:02d}"
    return name if progress.is_last_batch else f"{name}-step{trainer.global_step}"


def _total(trainer: Trainer, sums: Tensor) -> Tensor:
    total = trainer.strategy.reduce(sums, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def _encoder(pl_module: LightningModule) -> nn.Module:
    assert isinstance(pl_module, DetectionModule)
    return pl_module.detector.backbone.encoder


def _gated(encoder: nn.Module) -> bool:
    return any(site.gate is not None for _, site in adapted_sites(encoder))

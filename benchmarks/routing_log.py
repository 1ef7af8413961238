"""Cost of watching the experts: epochs of the quickstart with and without RoutingLog.

    python benchmarks/routing_log.py

In one run every other epoch (training and validation) is watched; a ratio is the median over pairs of neighbouring
epochs (lowest to highest), in processor time of this process, so that other work on the machine counts little. The
second part is a forward pass of XLSR's size, 24 layers with random weights, in evaluation, watched and not: the only
part of the cost that grows with the model. At most 64 batches of a development set are watched.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_SILENT", "true")

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import nn
from torch.optim import Optimizer

from moelora_ad.adapters import MoELoRA, record_routing
from moelora_ad.configuration.objects import instantiate, parse_parts
from moelora_ad.configuration.parser import OneLineParser
from moelora_ad.models import AASIST, Wav2Vec2Backbone, WhisperBackbone
from moelora_ad.training import AudioDeepfakeDataModule, DetectionModule
from moelora_ad.training.callbacks.routing_log import RoutingLog

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
LIMIT = 1.03
LOGGERS = {
    "csv": lambda folder: CSVLogger(folder),
    "wandb": lambda folder: WandbLogger(save_dir=folder, offline=True),
}


class EveryOtherEpoch(RoutingLog):
    """Watches epochs 1, 3, 5, ..."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch % 2:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.current_epoch % 2:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)


class Clock(Callback):
    """Processor seconds of each epoch, its validation included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds.append(time.process_time() - self._begun)
        print(f"epoch {len(self.seconds) - 1}: {self.seconds[-1]:.2f} s", flush=True)


def show(title: str, plain: list[float], watched: list[float]) -> None:
    ratios = [with_ / without for with_, without in zip(watched, plain, strict=True)]
    middle = statistics.median(ratios)
    print(f"\n{title}: {statistics.median(plain):.2f} s, watched {statistics.median(watched):.2f} s")
    print(f"watched to not: {middle:.3f}x ({min(ratios):.3f} to {max(ratios):.3f})")


def compare_epochs(pairs: int, logger: Logger, folder: str) -> None:
    paths, parser = [str(EXPERIMENTS / "quickstart.yaml")], OneLineParser(exit_on_error=False)
    parser.add_class_arguments(AudioDeepfakeDataModule, "data")
    data = instantiate(parser, parse_parts(parser, paths, {"data": None}), paths).data
    backbone = WhisperBackbone(EXPERIMENTS / "quickstart" / "backbone")
    module = DetectionModule(backbone, MoELoRA(3, 8), AASIST, class_weights=(0.5, 0.5))
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2 + 2 * pairs,  # the first two warm up
        logger=logger,
        default_root_dir=folder,
        callbacks=[EveryOtherEpoch(), clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=5,
    )
    trainer.fit(module, datamodule=data)
    plain, watched = clock.seconds[2::2], clock.seconds[3::2]
    show(f"epoch of the quickstart, {pairs} pairs", plain, watched)
    ratio = statistics.median(a / b for a, b in zip(watched, plain, strict=True))
    print(f"goal: <= {LIMIT}x: {'met' if ratio <= LIMIT else 'missed'}")


def compare_forward(repeats: int) -> None:
    torch.manual_seed(0)
    encoder = Wav2Vec2Backbone(pretrained=False).encoder.eval()
    MoELoRA(3, 8).adapt(encoder)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=1e-3)
    waveforms = torch.randn(1, 64_600)
    taken: dict[bool, list[float]] = {False: [], True: []}
    with torch.inference_mode():
        for repeat in range(-1, repeats):
            for watched in (False, True) if repeat % 2 else (True, False):
                with record_routing(encoder) if watched else nullcontext():
                    begun = time.process_time()
                    encoder(waveforms)
                    if repeat >= 0:
                        taken[watched].append(time.process_time() - begun)
    show(f"forward pass of 24 layers, {repeats} repeats", taken[False], taken[True])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="of epochs")
    parser.add_argument("--repeats", type=int, default=7, help="of the forward pass")
    parser.add_argument("--logger", choices=list(LOGGERS), default="csv")
    parser.add_argument("--parts", nargs="+", choices=("epoch", "forward"), default=("epoch", "forward"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if "epoch" in given.parts:
        with tempfile.TemporaryDirectory() as folder:
            compare_epochs(given.pairs, LOGGERS[given.logger](folder), folder)
    if "forward" in given.parts:
        compare_forward(given.repeats)


if __name__ == "__main__":
    main()

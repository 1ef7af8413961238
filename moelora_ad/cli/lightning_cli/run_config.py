"""The configuration of a run, saved in its folder."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from moelora_ad.data.trainer_state import run_directory
from moelora_ad.files import written_whole
from moelora_ad.runs.folder import check_free


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration of a training run in its folder, whatever the logger; a test changes nothing there.

    The checkpoint that a run resumed from is left out: a test with this configuration must name its own.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        folder = run_directory(trainer)
        resumes = self.config.ckpt_path is not None
        config = self.config.clone()
        config.ckpt_path = None
        with written_whole(folder / "config.yaml") as unfinished:
            self.parser.save(config, unfinished, skip_unset=False, overwrite=True, multifile=False)
            check_free(folder, resumes, unfinished.read_bytes())

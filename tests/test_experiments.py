"""Every configuration in experiments/ builds its classes, the full-size one on the meta device."""

from pathlib import Path

import lightning.fabric.accelerators.cuda as fabric_cuda
import lightning.pytorch.accelerators.cuda as pytorch_cuda
import pytest
import torch
import yaml
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from moelora_ad.adapters import FrozenBackbone, GatePolicy, LoRA, MoELoRA, adapted_sites
from moelora_ad.cli.lightning_cli.detection_command import DetectionCommand
from moelora_ad.corpora import ASVspoof2019
from moelora_ad.corpora.storage.files import located
from moelora_ad.errors import InputError
from moelora_ad.models import AASIST
from moelora_ad.models.saving.files import read_config
from moelora_ad.models.saving.packaged import packaged_models
from moelora_ad.models.saving.specification import describe
from moelora_ad.sweeps.planning import option_text, plan_runs
from moelora_ad.sweeps.sweep import read_sweep
from moelora_ad.training import MLDG
from moelora_ad.training.batch_norm import SyncedBatchNorm

PROJECT = Path(__file__).parents[1]
EXPERIMENTS = PROJECT / "experiments"


def build(monkeypatch, *configs: str, accelerator: str = "cpu") -> DetectionCommand:
    """Instantiate configurations as ``fit`` does, without running."""
    monkeypatch.chdir(PROJECT)
    files = [name for name in configs if name.endswith(".yaml")]
    options = [name for name in configs if not name.endswith(".yaml")]
    arguments = [part for name in files for part in ("--config", str(EXPERIMENTS / name))] + options
    # Configurations must not depend on the machine's accelerator.
    monkeypatch.setattr(DetectionCommand, "fit", lambda *_, **__: None)
    monkeypatch.setattr(DetectionCommand, "_read_trials", lambda *_: None)  # the corpora are not on this machine
    return DetectionCommand(args=["fit", *arguments, "--trainer.accelerator", accelerator])


GATES = 24 * 4 * 2 * 1024  # W_g and W_noise of the 96 gates, for one expert
LORA = 24 * 4 * 2 * 1024  # A and B of the 96 projections, for rank 1
HEAD = 447_242
LAYER = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024  # an encoder layer with two norms
# Published figures where the paper has the row (arXiv 2509.13878, table 1), figures by hand for the others.
TRAINED = {
    "frozen": HEAD,
    "full_fine_tuning": 315_438_720 - 1_024 + HEAD,  # without the vector of time masking, which is never used
    "top_layers_4": 4 * LAYER + HEAD,
    "lora_r4": 1_233_674,
    "lora_r8": 2_020_106,
    "lora_r16": 3_592_970,
    "moe_lora_e3_r4": 3_396_362,
    "moe_lora_e3_r8": 5_755_658,
    "moe_lora_e5_r4": 5_362_442,
    "moe_lora_e5_r8": 9_294_602,
    "moe_lora_e7_r4": 7_328_522,
    "moe_lora_e7_r8": 12_833_546,
    "moe_lora_load_balance": 5_755_658,
    "moe_lora_orthogonal": 5_755_658,
    "moe_lora_shared_gate": 3 * 8 * LORA + 3 * GATES // 4 + HEAD,
    "moe_lora_utterance_gate": 5_755_658,
    "moe_lora_warm_start": 5_755_658,
    "moe_lora_frozen_experts": 3 * GATES + HEAD,
    "mldg_lora_r16": 3_592_970,
}
ADAPTERS = sorted((EXPERIMENTS / "adapters").glob("*.yaml"))


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_every_row_composes_with_the_papers_configuration(monkeypatch, path):
    with torch.device("meta"):
        command = build(monkeypatch, "paper.yaml", f"adapters/{path.name}", "--seed_everything", "3")
    method = command.model.detector.adaptation
    trained = sum(p.numel() for p in command.model.parameters() if p.requires_grad)
    stem, _, gate = path.stem.rpartition("_") if path.stem.endswith(("_dense", "_top2")) else (path.stem, "", "")
    assert trained == TRAINED[stem]
    assert command.config.fit.system == path.stem
    assert command.datamodule.seed == 3
    if isinstance(method, MoELoRA):
        assert method.policy == GatePolicy(
            top_k={"top2": 2}.get(gate), level="utterance" if "utterance" in stem else "token"
        )
        assert (method.share_gate, method.alpha) == (stem == "moe_lora_shared_gate", None)
        assert (command.model.auxiliary is not None) == (stem in ("moe_lora_load_balance", "moe_lora_orthogonal"))
        assert (method.init_from is not None) == (stem in ("moe_lora_warm_start", "moe_lora_frozen_experts"))
    assert isinstance(command.model.meta_learning, MLDG) == path.stem.startswith("mldg")
    assert isinstance(command.datamodule.train, ASVspoof2019)


def test_an_overlay_leaves_nothing_of_the_one_below(monkeypatch):
    order = ("moe_lora_shared_gate", "moe_lora_orthogonal", "moe_lora_e5_r4_top2", "moe_lora_e3_r8_dense")
    with torch.device("meta"):
        last = build(monkeypatch, "paper.yaml", *(f"adapters/{name}.yaml" for name in order))
        alone = build(monkeypatch, "paper.yaml", f"adapters/{order[-1]}.yaml")
    assert vars(last.config.fit.model.adaptation.init_args) == vars(alone.config.fit.model.adaptation.init_args)
    assert not last.model.detector.adaptation.share_gate
    assert last.model.auxiliary is None


def test_the_papers_configuration_is_its_best_system(monkeypatch):
    with torch.device("meta"):
        command = build(monkeypatch, "paper.yaml")
    trained = [p for p in command.model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 5_755_658
    sites = [site for _, site in adapted_sites(command.model.detector)]
    assert len(sites) == 96
    assert all(site.gate.policy.top_k is None and site.scaling == 1.0 for site in sites)
    assert command.trainer.early_stopping_callback.monitor == "dev/eer"
    assert command.trainer.checkpoint_callback.monitor == "dev/eer"


@pytest.mark.parametrize(
    ("recipe", "optimizer", "rate", "algorithm", "position", "epochs"),
    [
        ("tak2022", torch.optim.Adam, 1e-6, 5, "first", 100),
        ("tak2022_df", torch.optim.Adam, 1e-6, 3, "first", 100),
        ("adapters", torch.optim.AdamW, 1e-4, None, "random", 30),
    ],
)
def test_recipes(monkeypatch, recipe, optimizer, rate, algorithm, position, epochs):
    with torch.device("meta"):
        command = build(monkeypatch, "paper.yaml", "adapters/lora_r4.yaml", f"recipes/{recipe}.yaml")
    module, data = command.model, command.datamodule
    made = module.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert type(made) is optimizer
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (rate, 1e-4)
    assert (module.schedule is None) == recipe.startswith("tak2022")
    assert module.class_weights.shape == (2,)
    assert (data.batch_size, data.train_segment.samples, data.train_segment.position) == (14, 64_600, position)
    assert getattr(data.train_augmentation, "algorithm", None) == algorithm
    assert data.augment_before_crop == recipe.startswith("tak2022")  # as in that system's code
    assert command.trainer.max_epochs == epochs
    assert command.trainer.gradient_clip_val == (1.0 if recipe == "adapters" else None)


@pytest.mark.parametrize("name", ["paper.yaml", "corpora/paper_test_sets.yaml"])
def test_one_variable_says_where_the_corpora_are(monkeypatch, tmp_path, name):
    data = yaml.safe_load((EXPERIMENTS / name).read_text())["data"]
    corpora = [data[part] for part in ("train", "val") if part in data] + list(data["test"].values())
    roots = [corpus["init_args"]["root"] for corpus in corpora]
    monkeypatch.delenv("CORPORA", raising=False)
    with pytest.raises(InputError, match=r"the environment variable CORPORA is not set"):
        ASVspoof2019(root=roots[0], split="train").trials()
    monkeypatch.setenv("CORPORA", str(tmp_path))
    assert all(located(root) == str(tmp_path / Path(root).name) for root in roots)


def test_the_papers_test_sets(monkeypatch):
    with torch.device("meta"):
        command = build(monkeypatch, "paper.yaml", "corpora/paper_test_sets.yaml")
    test = command.datamodule.test
    assert list(test) == [
        "ASVspoof2019_LA",
        "ASVspoof2021_LA",
        "ASVspoof2021_DF",
        "ASVspoof5",
        "InTheWild",
        "FakeAVCeleb_all",
    ]
    assert [corpus.name for corpus in test.values()] == list(test)


@pytest.mark.parametrize(
    ("overlay", "method", "sites"),
    [(None, MoELoRA, 16), ("adapters/frozen.yaml", FrozenBackbone, 0), ("adapters/lora_r8.yaml", LoRA, 16)],
)
def test_the_quickstart_and_its_variants(monkeypatch, overlay, method, sites):
    command = build(monkeypatch, "quickstart.yaml", *([overlay] if overlay else []))
    assert len(command.model.detector.sites) == sites
    config = command.config.fit.model.adaptation.class_path
    assert config == f"moelora_ad.adapters.{method.__name__}"
    command.datamodule.setup("fit")
    command.datamodule.setup("test")
    counts = {name: (t.num_bona_fide, t.num_spoof) for name, t in command.datamodule.eval_trials.items()}
    assert counts == {"in_domain": (60, 84), "out_of_domain": (60, 88)}


def test_the_quickstart_with_the_papers_head(monkeypatch):
    """The grid of systems was run with one learning rate and the last hidden state."""
    model = build(monkeypatch, "quickstart.yaml", "recipes/quickstart_aasist.yaml").model
    counts = {"experts": 294_912, "gates": 36_864, "classifier": 365_322, "backbone": 0, "total": 8_905_482}
    assert model.detector.parameter_counts() == counts
    assert isinstance(model.detector.classifier, AASIST)
    assert set(model.learning_rates.values()) == {None}
    assert model.detector.backbone.hidden_states == "last"


def test_the_packaged_models_recipe_is_that_of_the_packaged_model(monkeypatch):
    with torch.device("meta"):
        detector = build(monkeypatch, "mini/mini.yaml").model.detector
    config = read_config(packaged_models()["mini"])
    assert describe(detector.adaptation, leave_out=detector.adaptation.initial_arguments) == config["adaptation"]
    assert describe(detector.classifier, leave_out=["width"]) == config["classifier"]
    assert detector.parameter_counts() == config["parameters"]
    assert detector.backbone.init_args["hidden_states"] == config["backbone"]["init_args"]["hidden_states"]
    assert (config["window"], config["fill"]) == (80_000, 1_600)


# Sizes by hand: 4 layers of width 384, 4 projections each, A and B of rank r; three gates with noise; a linear layer.
_OF_RANK, _GATES_OF_TINY, _LINEAR = 4 * 4 * 2 * 384, 3 * 4 * 4 * 2 * 384, 4 * 384 * 2 + 2
_MIXTURE = 3 * 8 * _OF_RANK + _GATES_OF_TINY + _LINEAR
STUDY = {
    "frozen": _LINEAR,
    "lora_r8": 8 * _OF_RANK + _LINEAR,
    "lora_r24": 24 * _OF_RANK + _LINEAR,
    "moe_lora_e3_r8_dense": _MIXTURE,
    "moe_lora_e3_r8_top2": _MIXTURE,
    "moe_lora_utterance_gate": _MIXTURE,
    "moe_lora_load_balance": _MIXTURE,
    "moe_lora_warm_start": _MIXTURE,
    "moe_lora_mldg": _MIXTURE,
}


def test_the_systems_of_the_study(monkeypatch):
    monkeypatch.chdir(PROJECT)
    runs = [run for run in plan_runs(read_sweep("experiments/sweeps/study.yaml")) if run.seed == 1]
    assert {run.system for run in runs} == STUDY.keys() | {"frozen_aasist", "full_fine_tuning"}
    one_channel = [run for run in plan_runs(read_sweep("experiments/sweeps/study_one_channel.yaml")) if run.seed == 1]
    for run in runs + one_channel:
        configs = [str(Path(path).relative_to("experiments")) for path in run.configs]
        with torch.device("meta"):
            command = build(
                monkeypatch, *configs, *(f"--{name}={option_text(value)}" for name, value in run.options.items())
            )
        if run.system in STUDY:
            trained = sum(p.numel() for p in command.model.parameters() if p.requires_grad)
            assert trained == STUDY[run.system], run.system
        assert (command.datamodule.batch_size, command.trainer.max_epochs) == (8, 1)
        assert (command.datamodule.train_augmentation is None) == (run in one_channel)


def test_the_quickstart_with_meta_learning(monkeypatch):
    command = build(monkeypatch, "quickstart.yaml", "mldg.yaml")
    assert isinstance(command.model.meta_learning, MLDG)
    assert command.trainer.gradient_clip_val == 1.0


@pytest.mark.parametrize("name", ["paper.yaml", "quickstart.yaml"])
def test_a_run_takes_one_device(name):
    assert yaml.safe_load((EXPERIMENTS / name).read_text())["trainer"]["devices"] == 1


def test_several_gpus_are_used_only_if_the_user_says_so(monkeypatch, tmp_path):
    for module in (torch.cuda, fabric_cuda, pytorch_cuda):
        counts = "device_count" if module is torch.cuda else "num_cuda_devices"
        monkeypatch.setattr(module, counts, lambda: 8)
    config = yaml.safe_load((EXPERIMENTS / "quickstart.yaml").read_text())
    del config["trainer"]["devices"]  # as in a user's own configuration
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    trainer = build(monkeypatch, str(tmp_path / "own.yaml"), accelerator="auto").trainer
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    assert (trainer.strategy.root_device.type, trainer.num_devices) == ("cuda", 1)
    asked = ("--trainer.devices=8", "--trainer.strategy=ddp")
    trainer = build(monkeypatch, "quickstart.yaml", *asked, accelerator="auto").trainer
    assert isinstance(trainer.strategy, DDPStrategy)
    assert trainer.num_devices == 8
    assert isinstance(trainer.strategy._layer_sync, SyncedBatchNorm)
    trainer = build(
        monkeypatch, "quickstart.yaml", *asked, "--trainer.sync_batchnorm=false", accelerator="auto"
    ).trainer
    assert trainer.strategy._layer_sync is None


def test_every_configuration_is_one_of_these():
    names = {str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.rglob("*.yaml")}
    apart = {"paper.yaml", "quickstart.yaml", "mldg.yaml", "corpora/paper_test_sets.yaml", "mini/mini.yaml"}
    recipes = {f"recipes/{name}.yaml" for name in ("tak2022", "tak2022_df", "adapters", "quickstart_aasist")}
    rows = {f"adapters/{path.name}" for path in ADAPTERS}
    elsewhere = {name for name in names if name.startswith(("sweeps/", "loggers/", "extend/", "study/"))} | {
        f"mini/{name}.yaml" for name in ("about", "float32")
    }  # tested beside the code that reads them
    assert names == apart | recipes | rows | elsewhere
    assert {path.stem.removesuffix("_dense").removesuffix("_top2") for path in ADAPTERS} == set(TRAINED)


def test_the_quickstarts_audio_is_all_there():
    config = yaml.safe_load((EXPERIMENTS / "quickstart.yaml").read_text())["data"]
    protocols = [config["train"], config["val"], *config["test"].values()]
    listed = set()
    for corpus in protocols:
        lines = (PROJECT / corpus["init_args"]["protocol"]).read_text().splitlines()
        listed |= {PROJECT / corpus["init_args"]["audio"] / f"{line.split()[1]}.flac" for line in lines}
    assert listed == set((EXPERIMENTS / "quickstart").rglob("*.flac"))

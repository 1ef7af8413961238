"""What a fit reports about its experts, in its folder and through every kind of logger."""

import csv
import importlib.util
import json
import math
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from moelora_ad.adapters import (
    AuxiliaryWeights,
    FrozenBackbone,
    GatePolicy,
    LoRA,
    MoELoRA,
    adapted_sites,
    record_routing,
)
from moelora_ad.models import MeanPooling, WhisperBackbone
from moelora_ad.training import DetectionModule
from moelora_ad.training.callbacks.routing_figures import SiteFigures, by_figure, overview
from moelora_ad.training.callbacks.routing_log import RoutingLog, gradient_norms
from moelora_ad.training.callbacks.routing_plot import routing_heatmaps

SITE = "layers.1.self_attn.v_proj"


class Kept(Logger):
    """A logger that keeps what it is given."""

    name, version, save_dir = "kept", 0, None

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict]] = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def of(self, name: str) -> list[tuple[int, float]]:
        return [(step, row[name]) for step, row in self.rows if name in row]


class Gradients(Callback):
    """Keeps the norms of the gradients that the optimiser is about to use."""

    def __init__(self) -> None:
        self.norms: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parts: dict[str, float] = {}
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None:
                square = parameter.grad.double().square().sum().item()
                of_expert = name.split(".experts.")[1].split(".")[0] if ".experts." in name else None
                keys = ["experts", f"expert_{of_expert}"] if of_expert else ["gates"] if ".gate." in name else []
                for key in keys:
                    parts[key] = parts.get(key, 0.0) + square
        self.norms.append({name: math.sqrt(total) for name, total in parts.items()})


@pytest.fixture
def module(small_whisper):
    def build(adaptation=None, **arguments) -> DetectionModule:
        torch.manual_seed(3)
        return DetectionModule(
            WhisperBackbone(small_whisper),
            adaptation or MoELoRA(3, 2, top_k=2),
            MeanPooling,
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01),
            **arguments,
        )

    return build


def by_hand(model, data) -> tuple[dict[str, SiteFigures], int]:
    """The figures of the development set, from one pass over all of it and from whole matrices B A."""
    data.setup("validate")
    encoder = model.detector.backbone.encoder
    model.eval()
    count = 0
    with torch.no_grad(), record_routing(encoder) as record:
        for loader in data.val_dataloader():
            for batch in loader:
                model(batch.waveforms, batch.lengths)
                count += len(batch.trials)
    sites = dict(adapted_sites(encoder))
    figures = {}
    for name, routing in record.sites().items():
        updates = [sites[name].scaling * expert.lora_B @ expert.lora_A for expert in sites[name].experts]
        largest = torch.stack([torch.linalg.matrix_norm(update.detach(), 2) for update in updates])
        figures[name] = SiteFigures.of(routing, largest)
    return figures, count


def assert_alike(found: dict, expected: dict[str, SiteFigures]) -> None:
    assert set(found) == set(expected)
    for site, figures in expected.items():
        for name, value in figures._asdict().items():
            assert found[site][name] == pytest.approx(value, rel=1e-4, abs=1e-6), (site, name)


def test_figures_are_those_of_the_development_set(module, data, trainer, tmp_path, device):
    model, kept = module(), Kept()
    given = {"max_epochs": 2, "logger": kept, "callbacks": [RoutingLog()], "accelerator": device.type}
    trainer(tmp_path, **given).fit(model, datamodule=data())
    folder = tmp_path / "kept" / "version_0" / "routing"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"epoch{epoch:02d}.{ending}" for epoch in (0, 1) for ending in ("json", "png")
    ]
    content = json.loads((folder / "epoch01.json").read_text())
    expected, count = by_hand(model, data())
    assert_alike(content["sites"], expected)
    assert (content["epoch"], content["step"], content["num_trials"]) == (1, 6, count)
    assert content["num_decisions"] == count * 25  # 8,000 samples are 25 tokens
    last = {name: kept.of(name)[-1] for name in by_figure(expected)["mean_gate"]}
    step = kept.of("dev/eer")[-1][0]
    assert last == {
        f"routing_by_site/mean_gate/{site}/expert_{i}": (step, content["sites"][site]["mean_gate"][i])
        for site in expected
        for i in range(3)
    }
    effective = [figures.effective_experts for figures in expected.values()]
    assert kept.of("routing/effective_experts")[-1] == (step, pytest.approx(np.mean(effective), rel=1e-4))
    values = [expected[f"layers.{layer}.self_attn.v_proj"].entropy for layer in (0, 1)]
    assert kept.of("routing/entropy/self_attn.v_proj")[-1][1] == pytest.approx(np.mean(values), rel=1e-4)
    assert len(kept.of("routing/entropy")) == 2
    assert 1 <= content["overview"]["routing/load_balance"] <= 3
    picture = matplotlib.image.imread(folder / "epoch01.png")
    assert min(picture.shape[:2]) > 300


def test_load_balance_is_written_out(module, data, trainer, tmp_path):
    model = module(MoELoRA(2, 2))
    figures = by_hand(model, data())[0][SITE]
    shares = zip(figures.top1_share, figures.mean_gate, strict=True)
    assert figures.load_balance == pytest.approx(2 * sum(f * p for f, p in shares), rel=1e-5)


def test_gradient_norms_are_those_before_clipping(module, data, trainer, tmp_path):
    kept, gradients = Kept(), Gradients()
    trainer(
        tmp_path,
        logger=kept,
        callbacks=[RoutingLog(), gradients],
        gradient_clip_val=1e-3,
        log_every_n_steps=2,
        max_epochs=2,
    ).fit(module(), datamodule=data())
    assert len(gradients.norms) == 6
    for name in ("gates", "experts", "expert_0", "expert_1", "expert_2"):
        logged = kept.of(f"gradients/{name}")
        assert [step for step, _ in logged] == [1, 3, 5]
        assert [value for _, value in logged] == pytest.approx([gradients.norms[step][name] for step in (1, 3, 5)])
    assert gradients.norms[-1]["experts"] > 1e-3
    together = sum(gradients.norms[-1][f"expert_{i}"] ** 2 for i in range(3))
    assert gradients.norms[-1]["experts"] ** 2 == pytest.approx(together)


def test_a_shared_gate_is_counted_once(module):
    model = module(MoELoRA(2, 2, share_gate=True))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    gates = {id(site.gate): site.gate for _, site in adapted_sites(model.detector.backbone.encoder)}
    count = sum(parameter.numel() for gate in gates.values() for parameter in gate.parameters())
    assert gradient_norms(model.detector.backbone.encoder)["gates"].item() == pytest.approx(math.sqrt(count))


def test_frozen_experts_have_no_norm(module):
    model = module(MoELoRA(2, 2))
    encoder = model.detector.backbone.encoder
    for _, site in adapted_sites(encoder):
        for parameter in site.experts[1].parameters():
            parameter.grad = torch.ones_like(parameter)
    assert set(gradient_norms(encoder)) == {"experts", "expert_1"}


@pytest.mark.parametrize("adaptation", [LoRA(2), FrozenBackbone()])
def test_nothing_is_said_of_a_model_without_gates(module, data, trainer, tmp_path, adaptation):
    kept = Kept()
    trainer(tmp_path, logger=kept, callbacks=[RoutingLog()]).fit(module(adaptation), datamodule=data())
    names = {name for _, row in kept.rows for name in row}
    assert not [name for name in names if name.startswith(("routing", "gradients"))]
    assert kept.of("dev/eer")
    assert not list(tmp_path.rglob("routing"))


def test_the_table_of_a_csv_logger_stays_small(module, data, trainer, tmp_path):
    logger = CSVLogger(tmp_path, name="csv")
    trainer(tmp_path, logger=logger, callbacks=[RoutingLog()], log_every_n_steps=1).fit(module(), datamodule=data())
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((tmp_path / "csv" / "version_0" / "routing" / "epoch00.json").read_text())
    row = next(row for row in rows if row["dev/eer"])
    for name, value in content["overview"].items():
        assert float(row[name]) == pytest.approx(value, rel=1e-5)  # the overview is in the row of the development EER
    assert [row for row in rows if row["gradients/expert_2"]]
    assert not [name for name in rows[0] if name.startswith("routing_by_site")]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_scalars_and_the_picture(module, data, trainer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="board")
    trainer(tmp_path, logger=logger, callbacks=[RoutingLog()]).fit(module(), datamodule=data())
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "images": 0}).Reload()
    content = json.loads((tmp_path / "board" / "version_0" / "routing" / "epoch00.json").read_text())
    name = f"routing_by_site/output_norm/{SITE}/expert_1"
    assert events.Scalars(name)[0].value == pytest.approx(content["sites"][SITE]["output_norm"][1], rel=1e-6)
    assert events.Images("routing/heatmaps")[0].width > 300


def test_several_loggers_and_none(module, data, trainer, tmp_path):
    first, second = Kept(), CSVLogger(tmp_path / "csv")
    trainer(tmp_path / "two", logger=[first, second], callbacks=[RoutingLog()]).fit(module(), datamodule=data())
    assert first.of("routing/entropy")
    assert (tmp_path / "two" / "kept" / "version_0" / "routing" / "epoch00.png").is_file()
    trainer(tmp_path / "none", callbacks=[RoutingLog()]).fit(module(), datamodule=data())
    assert (tmp_path / "none" / "routing" / "epoch00.json").is_file()


def test_validations_within_an_epoch_are_kept_apart(module, data, trainer, tmp_path):
    trainer(tmp_path, callbacks=[RoutingLog()], val_check_interval=1).fit(module(), datamodule=data())
    names = {path.name for path in (tmp_path / "routing").glob("*.json")}
    assert names == {"epoch00-step1.json", "epoch00-step2.json", "epoch00.json"}


def test_trying_one_batch_leaves_nothing(module, data, trainer, tmp_path):
    trainer(tmp_path, callbacks=[RoutingLog()], fast_dev_run=True).fit(module(), datamodule=data())
    assert not list(tmp_path.rglob("routing"))


@pytest.mark.forks
def test_two_processes_see_what_one_does(experiment, write_config, tmp_path, lightning, forked):
    """8 development trials in batches of 3, over two gloo processes, of which one has no batch once."""
    experiment["trainer"] |= {"max_epochs": 1, "callbacks": [{"class_path": "moelora_ad.training.RoutingLog"}]}
    experiment["model"]["optimizer"]["init_args"] = {"lr": 0.0, "weight_decay": 0.0}
    found = []
    for processes in (1, 2):
        experiment["trainer"]["logger"]["init_args"]["name"] = f"by_{processes}"
        experiment["trainer"] |= {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
        arguments = ["fit", "--config", str(write_config(experiment)), "--test_after_fit", "false"]
        code, out, err = lightning(*arguments) if processes == 1 else forked(*arguments, processes=2)
        assert code == 0, out + err
        folder = tmp_path / "runs" / f"by_{processes}" / "version_0"
        assert (folder / "routing" / "epoch00.png").is_file()
        found.append(json.loads((folder / "routing" / "epoch00.json").read_text()))
    one, two = found
    assert one["num_trials"] == two["num_trials"] == 8
    assert one["num_decisions"] == two["num_decisions"]
    for site, figures in one["sites"].items():
        assert two["sites"][site] == {name: pytest.approx(value, rel=1e-6) for name, value in figures.items()}
    assert (folder / "metrics.csv").read_text().count("routing/entropy") == 5  # 4 projections, and all of them


def test_a_large_set_is_watched_in_part(module, data, trainer, tmp_path):
    """Of 8 trials in batches of 1, at most 3 are watched: every third."""
    trainer(tmp_path, callbacks=[RoutingLog(most_batches=3)]).fit(module(), datamodule=data(eval_batch_size=1))
    assert json.loads((tmp_path / "routing" / "epoch00.json").read_text())["num_trials"] == 3
    with pytest.raises(ValueError, match="at least one"):
        RoutingLog(most_batches=0)


def test_watching_changes_no_weight_and_no_score(module, data, trainer, tmp_path):
    states = []
    for callbacks in ([], [RoutingLog()]):
        model = module(MoELoRA(3, 2, auxiliary=AuxiliaryWeights(importance=0.1)))
        trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(model, datamodule=data())
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


class Collapse(Callback):
    """Makes the gates of a share of the projections send everything to expert 1, in the given epochs."""

    def __init__(self, share: float, epochs: set[int]) -> None:
        self.share = share
        self.epochs = epochs

    def on_validation_start(self, trainer, pl_module):
        sites = [site for _, site in adapted_sites(pl_module.detector.backbone.encoder)]
        for number, site in enumerate(sites):
            site.gate.logit_offset.zero_()
            site.gate.weight.data.zero_()  # equal gate weights
            if trainer.current_epoch in self.epochs and number < self.share * len(sites):
                site.gate.logit_offset[1] = 1000.0


@pytest.mark.parametrize(("share", "warnings"), [(0.75, 2), (0.5, 0)])
def test_a_collapse_is_told_once_while_it_lasts(module, data, trainer, tmp_path, capsys, share, warnings):
    """Of 8 projections, most means more than 4."""
    kept = Kept()
    callbacks = [Collapse(share, {0, 1, 3}), RoutingLog()]
    adaptation = MoELoRA(3, 2, gate=GatePolicy(noise="none"))
    trainer(tmp_path, max_epochs=4, logger=kept, callbacks=callbacks).fit(module(adaptation), datamodule=data())
    lines = [line for line in capsys.readouterr().err.splitlines() if "one expert takes" in line]
    assert len(lines) == warnings
    assert [value >= 8 * share for _, value in kept.of("routing/collapsed_sites")] == [True, True, False, True]
    if lines:
        assert "in 6 of 8 projections (expert 1 in 6 of them)" in lines[0]
        assert "auxiliary.importance" in lines[0]


def test_the_overview_of_sites_that_differ():
    """The sites differ in their layer, their projection, and their number of experts (2 or 3)."""
    even = SiteFigures([0.5, 0.5], [0.96, 0.04], [1.0, 3.0], [0.2, 0.4], 0.6, 2.0, 1.0)
    other = SiteFigures([0.2, 0.3, 0.5], [0.0, 0.1, 0.9], [2.0, 2.0, 5.0], [0.1, 0.1, 0.4], 0.3, 2.5, 1.5)
    found = overview({"layers.0.a.q": even, "layers.1.a.q": other, "layers.1.b.q": even, "head": other})
    assert found["routing/entropy"] == pytest.approx((0.6 + 0.3 + 0.6 + 0.3) / 4)
    assert found["routing/entropy/a.q"] == pytest.approx(0.45)
    assert found["routing/entropy/head"] == pytest.approx(0.3)
    assert found["routing/output_norm/a.q"] == pytest.approx((2.0 + 3.0) / 2)
    assert found["routing/top1_share/a.q"] == pytest.approx((0.96 + 0.9) / 2)
    assert found["routing/collapsed_sites"] == 0


@pytest.mark.parametrize(
    ("mean_gate", "top1_share", "expert"),
    [
        ([0.02, 0.98], [0.0, 1.0], 1),
        ([0.49, 0.51], [0.0, 1.0], None),  # always first, but the other expert has nearly half of the weight
        ([0.94, 0.06], [0.94, 0.06], None),
        ([0.0, 0.0, 0.5], [0.0, 0.0, 1.0], 2),  # with top-k, the weights need not sum to 1
        ([0.2, 0.2, 0.6], [0.01, 0.01, 0.98], None),
        ([0.7, 0.2, 0.1], [0.96, 0.02, 0.02], 0),
    ],
)
def test_an_expert_that_takes_everything(mean_gate, top1_share, expert):
    assert SiteFigures(mean_gate, top1_share, [], [], 0.0, 1.0, 1.0).collapsed_to == expert


def test_heatmaps_of_a_large_model_and_of_one_cell():
    generator = np.random.default_rng(0)

    def figures(experts: int) -> SiteFigures:
        shares = generator.dirichlet([1.0] * experts).tolist()
        return SiteFigures(shares, shares, shares, [0.0] * experts, 1.0, 2.0, 1.0)

    projections = ("k_proj", "v_proj", "q_proj", "out_proj")
    large = {f"encoder.layers.{i}.attention.{name}": figures(7) for i in range(24) for name in projections}
    assert routing_heatmaps(large, "title").startswith(b"\x89PNG")
    for sites in ({"projection": figures(1)}, {"layers.0.q": figures(2), "layers.3.v": figures(3)}):
        assert routing_heatmaps(sites, "title").startswith(b"\x89PNG")


def test_the_sums_of_processes_are_those_of_all_batches(module, data):
    """The first two processes have a batch each, and the third has none."""
    model = module()
    encoder = model.detector.backbone.encoder
    waveforms = torch.randn(6, 8_000, generator=torch.Generator().manual_seed(0))
    model.eval()
    records = []
    for part in (waveforms, waveforms[:4], waveforms[4:], None):
        with torch.inference_mode(), record_routing(encoder) as record:
            if part is not None:
                record.label([f"utterance {number}" for number in range(len(part))])
                model(part)
        records.append(record)
    whole, *parts = records
    own: list[torch.Tensor] = []
    for record in parts:
        record.reduce(encoder, lambda sums: own.append(sums) or sums)
    parts[2].reduce(encoder, lambda sums: torch.stack(own).sum(0))
    assert parts[2].groups == ("",)
    for site, expected in whole.sites().items():
        found = parts[2].sites()[site]
        assert found.num_decisions == expected.num_decisions
        for name in ("mean_gate", "top1_share", "selection_share", "output_norm"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))
        assert found.entropy == pytest.approx(expected.entropy)


def test_fused_optimisers_leave_the_scale_to_us(module, monkeypatch):
    model = module()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 8.0)
    logged: dict[str, float] = {}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    plugin = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: 8.0))
    trainer = SimpleNamespace(
        log_every_n_steps=1, global_step=0, should_stop=False, strategy=None, precision_plugin=plugin
    )
    fused = SimpleNamespace(_step_supports_amp_scaling=True)
    RoutingLog().on_before_optimizer_step(trainer, model, fused)
    count = sum(p.numel() for p in model.detector.parameters_by_part()["experts"])
    assert float(logged["gradients/experts"]) == pytest.approx(math.sqrt(count))

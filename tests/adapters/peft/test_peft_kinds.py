"""Every kind of LoRA that the installed peft trains: read here with the same outputs, or refused by name."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.lora import EvaConfig, LoraGAConfig, MontecloraConfig
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, VeloraConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn
from transformers import BertConfig, BertModel

from moelora_ad.adapters import AdapterError, LoRA, MoELoRA, adapt_from_peft

INPUTS = torch.arange(24).reshape(4, 6)
TARGETS = ["query", "value"]
BASE_CHANGED = ["pissa", "pissa_niter_2", "olora", "corda", "lora_ga"]
BASE_KEPT = [True, False, "gaussian", "orthogonal", "eva", "mica"]


def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        **{"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32},
        **{"vocab_size": 50, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        initializer_range=0.3,
    )
    return BertModel(config).eval()


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(INPUTS).last_hidden_state


def started(start: bool | str, **arguments: object) -> peft.PeftModel:
    """A LoRA of peft with the given initialisation, prepared as peft's documentation says."""
    model = bert()
    further = {"eva": {"eva_config": EvaConfig(rho=1.0)}, "lora_ga": {"lora_ga_config": LoraGAConfig()}}
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=TARGETS, init_lora_weights=start, **further.get(str(start), {}), **arguments
    )
    if start == "corda":
        preprocess_corda(model, config, run_model=lambda: [model(row) for row in INPUTS.split(1)])
    if start == "lora_ga":
        preprocess_loraga(model, config, lambda: model(INPUTS).last_hidden_state[..., 0].sum().backward())
    adapted = peft.get_peft_model(model, config)
    if start == "eva":
        batches = [{"input_ids": INPUTS + shift} for shift in range(20)]
        initialize_lora_eva_weights(adapted, batches, show_progress_bar=False)
    return adapted


def trained(model: peft.PeftModel) -> peft.PeftModel:
    """Moves every parameter that peft trains, as training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def saved(model: peft.PeftModel, folder: Path, **arguments: object) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **arguments)
    return folder


def is_base_kept(model: peft.PeftModel) -> bool:
    untouched = dict(bert().named_parameters())
    layers = [(n, m) for n, m in model.base_model.model.named_modules() if isinstance(m, peft.tuners.lora.Linear)]
    return all(torch.equal(layer.get_base_layer().weight, untouched[f"{name}.weight"]) for name, layer in layers)


@pytest.mark.parametrize("start", BASE_KEPT, ids=str)
def test_a_lora_that_began_on_the_models_own_weights_is_read_with_equal_outputs(start, tmp_path):
    theirs = trained(started(start))
    assert is_base_kept(theirs)
    ours = bert()
    adapt_from_peft(ours, saved(theirs, tmp_path))
    torch.testing.assert_close(output(ours), output(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", BASE_CHANGED)
def test_a_lora_that_stands_on_changed_weights_is_refused_by_name(start, tmp_path):
    theirs = trained(started(start))
    assert not is_base_kept(theirs)
    folder = saved(theirs, tmp_path)
    model = bert()
    with pytest.raises(AdapterError, match=f"is '{start}': peft changed .*path_initial_model_for_") as caught:
        adapt_from_peft(model, folder)
    assert "\n" not in str(caught.value)
    assert torch.equal(output(model), output(bert()))  # nothing was adapted
    for method, model in ((LoRA(2, targets=TARGETS, init_from=str(folder)), bert()), (_mixture(folder), bert())):
        method.adapt(model)
        with pytest.raises(AdapterError, match="peft changed the weights below"):
            method.initialise(model)
    # Read as a plain LoRA, the adapter computes a different function from the one that was trained.
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": True}))
    adapt_from_peft(model := bert(), folder)
    assert (output(model) - output(theirs)).abs().max() > 0.01


def _mixture(folder: Path) -> MoELoRA:
    return MoELoRA(2, 2, targets=TARGETS, init_from=str(folder))


@pytest.mark.parametrize("start", BASE_CHANGED)
def test_what_the_refusal_says_makes_a_plain_lora_of_equal_outputs(start, tmp_path):
    theirs = started(start)
    theirs.peft_config["default"].init_lora_weights = True  # as peft documents for saving the starting adapter
    first = saved(theirs, tmp_path / "first")
    theirs.peft_config["default"].init_lora_weights = start
    trained(theirs)
    wanted = output(theirs)
    folder = saved(theirs, tmp_path / "plain", path_initial_model_for_weight_conversion=str(first))
    adapt_from_peft(ours := bert(), folder)
    torch.testing.assert_close(output(ours), wanted, rtol=1e-4, atol=1e-4)


KINDS: dict[str, dict[str, object]] = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["pooler"]},
    "trainable_token_indices": {"trainable_token_indices": {"word_embeddings": [1, 2]}},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "velora_config": {"velora_config": VeloraConfig(num_groups=2)},
    "monteclora_config": {"monteclora_config": MontecloraConfig()},
    "kasa_config": {"kasa_config": KasaConfig()},
    "use_bdlora": {"use_bdlora": BdLoraConfig(target_modules_bd_a=["query"], target_modules_bd_b=["value"], nblocks=2)},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"},
    "target_parameters": {"target_parameters": ["intermediate.dense.weight"]},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_other_kind_of_lora_is_refused_by_name(name, tmp_path):
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS, **KINDS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "alora_invocation_tokens":  # peft trains this kind in language models only
            folder = saved(started(True), tmp_path)
            config.save_pretrained(folder)
        else:
            folder = saved(trained(peft.get_peft_model(bert(), config)), tmp_path)
    model = bert()
    with pytest.raises(AdapterError, match=rf"{name} is .*: only ") as caught:
        adapt_from_peft(model, folder)
    assert "\n" not in str(caught.value)
    assert torch.equal(output(model), output(bert()))


EDITED = {
    "use_qalora": True,
    "arrow_config": {"top_k": 2},
    "megatron_config": {"hidden_size": 16},
    "fan_in_fan_out": True,
    "a_field_of_a_later_version": 0.5,
}


@pytest.mark.parametrize("name", EDITED)
def test_fields_of_kinds_that_cannot_be_trained_here_and_unknown_ones_are_refused(name, tmp_path):
    path = saved(trained(started(True)), tmp_path) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: EDITED[name]}))
    with pytest.raises(AdapterError, match=f"{name} is set: only plain LoRAs"):
        adapt_from_peft(bert(), tmp_path)


@pytest.mark.parametrize(
    ("start", "told"),
    [("loftq", "is 'loftq': peft changed .*merge_and_unload"), ("later", "is 'later', unknown here")],
)
def test_starts_that_cannot_be_trained_here_and_unknown_ones_are_refused(start, told, tmp_path):
    """LoftQ needs a GPU, because it quantises the weights: only its configuration is written here."""
    path = saved(started(True), tmp_path) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": start}))
    with pytest.raises(AdapterError, match=f"init_lora_weights {told}"):
        adapt_from_peft(bert(), tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"exclude_modules": ["encoder.layer.0.attention.self.value"]},
        {"layers_to_transform": [1], "layers_pattern": "layer"},
        {"use_rslora": True, "lora_dropout": 0.3},
        {"task_type": "FEATURE_EXTRACTION"},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_fields_that_say_where_and_how_it_was_trained_do_not_matter(arguments, tmp_path):
    theirs = trained(started(True, **arguments))
    ours = bert()
    sites = adapt_from_peft(ours, saved(theirs, tmp_path))
    assert 0 < len(sites) < 5
    torch.testing.assert_close(output(ours), output(theirs), rtol=1e-5, atol=1e-6)

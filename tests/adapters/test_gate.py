"""Every gate policy against its formula written out token by token."""

import math

import pytest
import torch
from transformers import BertConfig, BertModel

from moelora_ad.adapters import AdapterError, Gate, GatePolicy, MoELoRA, valid_tokens
from moelora_ad.models import Wav2Vec2Backbone

ROWS, TOKENS, EXPERTS = 3, 5, 4
POLICIES = [
    GatePolicy(temperature=0.5),
    GatePolicy(noise="fixed", noise_std=0.3),
    GatePolicy(noise="fixed", noise_std=0.3, noise_mean=(1.0, 0.0, -1.0, 2.0), temperature=2.0),
    GatePolicy(noise="none", top_k=2, order="top_k_first", temperature=0.7),
    GatePolicy(noise="none", top_k=3, renormalise=True),
    GatePolicy(level="utterance"),
    GatePolicy(level="utterance", top_k=2, noise="fixed", noise_std=0.5, order="top_k_first"),
]


def written_out(policy, logits, noise_logits, noise, training):
    """The gate weights of one row of tokens, as lists of numbers."""
    if policy.level == "utterance":
        logits = [[sum(column) / len(column) for column in zip(*logits, strict=True)]]
        noise_logits = [[sum(column) / len(column) for column in zip(*noise_logits, strict=True)]]
    rows = []
    for token, spread, draw in zip(logits, noise_logits, noise, strict=False):
        if training and policy.noise == "learned":
            token = [t + d * math.log1p(math.exp(s)) for t, s, d in zip(token, spread, draw, strict=True)]
        if training and policy.noise == "fixed":
            mean = policy.noise_mean or (0.0,) * EXPERTS
            token = [t + m + d * policy.noise_std for t, m, d in zip(token, mean, draw, strict=True)]
        token = [t / policy.temperature for t in token]
        best = sorted(range(EXPERTS), key=lambda i: -token[i])[: policy.top_k or EXPERTS]
        base = best if policy.order == "top_k_first" else range(EXPERTS)
        total = sum(math.exp(token[i]) for i in base)
        weights = [math.exp(token[i]) / total if i in best else 0.0 for i in range(EXPERTS)]
        kept = sum(weights) if policy.renormalise else 1.0
        rows.append([weight / kept for weight in weights])
    return rows


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_weights_are_those_of_the_formula(policy, training, everywhere, monkeypatch):
    torch.manual_seed(0)
    gate = Gate(8, EXPERTS, policy).train(training).to(everywhere)
    logits, spread, noise = torch.randn(3, ROWS, TOKENS, EXPERTS)
    if policy.level == "utterance":
        noise = noise[:, :1]
    monkeypatch.setattr(torch, "randn_like", lambda x: noise.to(x))
    both = training and policy.noise == "learned"
    given = gate((torch.cat([logits, spread], -1) if both else logits).to(everywhere)).cpu()
    parts = (tensor.tolist() for tensor in (logits, spread, noise))
    wanted = [written_out(policy, *row, training) for row in zip(*parts, strict=True)]
    torch.testing.assert_close(given, torch.tensor(wanted))


def test_top_k_first_is_softmax_first_renormalised():
    logits = torch.randn(6, EXPERTS)
    first = Gate(8, EXPERTS, GatePolicy(noise="none", top_k=2, order="top_k_first"))(logits)
    other = Gate(8, EXPERTS, GatePolicy(noise="none", top_k=2, renormalise=True))(logits)
    torch.testing.assert_close(first, other)


def test_an_utterance_gate_does_not_hear_padding():
    gate = Gate(8, EXPERTS, GatePolicy(level="utterance", noise="none"))
    logits = torch.randn(2, TOKENS, EXPERTS)
    logits[1, 3:] = torch.nan  # the values at padding must not matter
    valid_tokens(gate, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
    given = gate(logits)
    valid_tokens(gate, None)
    torch.testing.assert_close(given[:1], gate(logits[:1]))
    torch.testing.assert_close(given[1:], gate(logits[1:, :3]))


def test_a_padded_batch_of_an_encoder_is_gated_as_its_utterances_alone(small_wav2vec2):
    torch.manual_seed(0)
    backbone = Wav2Vec2Backbone(small_wav2vec2)
    MoELoRA(3, 2, gate=GatePolicy(level="utterance", noise="none")).adapt(backbone.encoder)
    for name, parameter in backbone.encoder.named_parameters():
        if "lora_B" in name or "gate" in name:
            torch.nn.init.normal_(parameter)
    backbone.eval()
    long, short = torch.randn(16_000), torch.randn(9_000)
    batch = torch.stack([long, torch.cat([short, torch.full((7_000,), 5.0)])])
    frames, lengths = backbone(batch, torch.tensor([16_000, 9_000]))
    for row, clip in enumerate((long, short)):
        alone, _ = backbone(clip.unsqueeze(0))
        assert lengths[row] == alone.shape[1]
        torch.testing.assert_close(frames[row, : alone.shape[1]], alone[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (GatePolicy(top_k=5), "top_k is 5, but there are 4 experts"),
        (GatePolicy(noise="fixed", noise_std=1.0, noise_mean=(0.0, 1.0)), "noise_mean has 2 numbers"),
    ],
)
def test_policies_that_do_not_fit_the_experts(policy, message):
    for build in (lambda: Gate(8, EXPERTS, policy), lambda: MoELoRA(EXPERTS, 2, gate=policy)):
        with pytest.raises(ValueError, match=message):
            build()


@pytest.mark.parametrize("rows", [3, 7])  # as many as tokens, too
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("level", ["token", "utterance"])
def test_a_pooler_is_gated_for_each_row_alone(level, padded, rows):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    bert, policy = BertModel(config).eval(), GatePolicy(noise="none", level=level)
    MoELoRA(3, 2, gate=policy, targets=["dense"]).adapt(bert)
    for name, parameter in bert.named_parameters():
        if "lora_B" in name or "gate" in name:
            torch.nn.init.normal_(parameter)
    ids, mask = torch.randint(0, 30, (rows, 7)), torch.ones(rows, 7, dtype=torch.bool)
    lengths = [7 - padded * (row % 3) for row in range(rows)]
    for row, length in enumerate(lengths):
        mask[row, length:] = False
    valid_tokens(bert, mask if padded else None)
    together = bert(ids, attention_mask=mask.long()).pooler_output
    valid_tokens(bert, None)
    alone = [bert(ids[i : i + 1, :length]).pooler_output for i, length in enumerate(lengths)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_padding_of_another_shape_than_the_input_is_told():
    gate = Gate(8, EXPERTS, GatePolicy(level="utterance"))
    gate.valid = torch.ones(3, 5, dtype=torch.bool)
    with pytest.raises(AdapterError, match=r"set for \(3, 5\) rows and tokens, but .* has \(3, 4\)"):
        gate(torch.randn(3, 4, EXPERTS))

"""The README's Python, word for word, on a small random model in the place of one from the hub."""

import re
from pathlib import Path

import torch
from transformers import AutoModel, BertConfig, BertModel

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_a_model_that_is_not_ours_is_adapted_as_the_readme_does(monkeypatch, capsys):
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "AutoModel" in code]
    torch.manual_seed(0)
    bert = BertModel(BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=12, intermediate_size=32))
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda _: bert)
    found: dict = {}
    exec(example, found)
    assert len(found["sites"]) == 12
    shown = capsys.readouterr().out
    gates = torch.tensor([float(number) for number in re.findall(r"\d\.\d+", shown)])
    torch.testing.assert_close(gates, found["routing"].sites()[found["sites"][0]].mean_gate, rtol=0, atol=1e-4)
    assert (gates > 0).sum() >= 2

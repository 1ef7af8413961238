"""The command models: the models that can be used at once, and the warnings about them."""

import json
from pathlib import Path

from moelora_ad.cli.saved_models import models


def test_the_packaged_model_is_listed_with_its_figures_and_limits(run_verb):
    code, printed, error = run_verb(models)
    assert (code, error) == (0, "")
    for words in ("mini: WhisperBackbone, MoELoRA, ", "EER in_domain", "95 % interval", "no evidence", "Apache-2.0"):
        assert words in printed
    assert "General Public License" in " ".join(printed.split())


def test_json_has_all_of_it(run_verb, tmp_path):
    code, printed, _ = run_verb(models, "--json", "-")
    (mini,) = json.loads(printed)
    assert (code, mini["name"]) == (0, "mini")
    assert [result["set"] for result in mini["results"]] == ["dev", "in_domain", "out_of_domain"]
    assert [result["num_bona_fide"] for result in mini["results"]][:2] == [320, 1_000]
    for result in mini["results"]:
        figure = result["figures"]["EER"]
        assert 0 < figure["low"] < figure["value"] < figure["high"] < 0.5
    assert mini["data"]["training"] == "MiniLA train"
    assert mini["limits"]
    assert mini["recordings"]
    texts = " ".join(Path(path).read_text() for path in mini["licence_texts"])
    assert "GNU GENERAL PUBLIC LICENSE" in texts
    assert "Copyright (c) 2022 OpenAI" in texts
    assert run_verb(models, "--json", tmp_path / "models.json")[0] == 0
    assert json.loads((tmp_path / "models.json").read_text()) == [mini]

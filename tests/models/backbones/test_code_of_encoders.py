"""A pretrained encoder cannot bring code: code that its files name is not run, and no question asks about it."""

import io
import json
import shutil

import pytest

from moelora_ad.adapters import LoRA
from moelora_ad.errors import InputError
from moelora_ad.models import Detector, MeanPooling, Wav2Vec2Backbone, WhisperBackbone


@pytest.fixture
def hostile(tmp_path, small_whisper, monkeypatch):
    """Makes an encoder's folder whose code would write a file ``ran``; any question is answered with yes."""

    def make(**changes):
        folder = tmp_path / "encoder"
        shutil.copytree(small_whisper, folder)
        (folder / "code.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
            "from transformers import WhisperConfig as Config\n"
            "from transformers import Wav2Vec2FeatureExtractor as Extractor\n"
        )
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return folder

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"y\n" * 9)))
    yield make
    assert not (tmp_path / "ran").exists()


CODE = {"auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Config"}}


def test_a_class_in_the_folder_is_not_imported(hostile, capsys):
    folder = hostile(**CODE, model_type="another")
    with pytest.raises(InputError, match=r"config.json needs code of its own \(auto_map\)"):
        WhisperBackbone(folder)
    assert capsys.readouterr().out == ""  # no question was asked


def test_transformers_own_class_is_taken_where_it_has_one(hostile, capsys):
    WhisperBackbone(hostile(**CODE))
    assert capsys.readouterr().out == ""


def test_kernels_of_a_repository_are_not_fetched(hostile):
    with pytest.raises(InputError, match=r"needs code of its own \(attn_implementation\)"):
        WhisperBackbone(hostile(attn_implementation="somebody/kernels"))


def test_a_preprocessor_has_no_code_either(hostile, small_wav2vec2):
    folder = hostile(**json.loads((small_wav2vec2 / "config.json").read_text()))
    shutil.copy(small_wav2vec2 / "model.safetensors", folder)
    preprocessor = json.loads((small_wav2vec2 / "preprocessor_config.json").read_text())
    preprocessor |= {"auto_map": {"AutoFeatureExtractor": "code.Extractor"}, "feature_extractor_type": "Extractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    assert Wav2Vec2Backbone(folder).normalize


def test_score_of_a_strangers_model_tells_it_in_a_line(hostile, tmp_path, small_whisper, quickstart, lightning):
    Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["backbone"]["init_args"]["source"] = str(hostile(**CODE, model_type="another"))
    config["backbone_files"] = {}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    sound = next((quickstart / "corpus").rglob("*.flac"))
    code, out, err = lightning("score", sound, "--model", tmp_path / "model")
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "needs code of its own (auto_map)" in err

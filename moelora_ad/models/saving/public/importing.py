"""Reading the content of a published checkpoint: a file, a folder, or a repository on the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from torch import Tensor

from moelora_ad.documents import read_json
from moelora_ad.errors import InputError
from moelora_ad.models.saving.files import CONFIG, downloading
from moelora_ad.models.saving.public.audio_classifiers import KINDS, audio_classifier
from moelora_ad.models.saving.public.contents import PublicModel
from moelora_ad.models.saving.public.fairseq import fairseq_encoder
from moelora_ad.models.saving.public.naming import part, unwrapped
from moelora_ad.models.saving.public.unpickling import field, read_file
from moelora_ad.models.saving.public.whole_models import antideepfake, raw_aasist, ssl_anti_spoofing

KNOWN = (
    "fairseq's wav2vec 2.0, XLSR and XLS-R; SSL_Anti-spoofing with AASIST; AntiDeepfake; AASIST and AASIST-L; folders "
    f"of transformers with {', '.join(KINDS)}"
)
_WEIGHTS = ("*.safetensors", "*.pt", "*.pth", "*.ckpt", "pytorch_model.bin")
_DOWNLOADED = (*_WEIGHTS, "*.json")
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "model_weight", "net")


def read_public(
    source: str | Path,
    *,
    revision: str | None = None,
    bona_fide: str | None = None,
    normalize: bool | None = None,
    attention_heads: int | None = None,
) -> PublicModel:
    """Read the content of a published checkpoint. Nothing in its files is executed.

    Args:
        source: a file, a folder, or the id of a repository on the Hugging Face hub.
        revision: commit, tag or branch of that repository.
        bona_fide: which of a classifier's two labels is bona fide, where their names leave it open.
        normalize: whether waveforms get zero mean and unit variance, where the file does not say so.
        attention_heads: their number, where neither the file nor the width of a published model determines it.

    Raises:
        InputError: a file is missing, damaged, of an unknown layout, or lacks required information.
    """
    path = Path(source)
    if not path.exists():
        path = _downloaded(str(source), revision)
    elif revision is not None:
        raise InputError(f"{source} is a local path: revision {revision!r} is for the hub")
    config: dict[str, Any] = {}
    if path.is_dir():
        config = _config_of(path)
        name = next((name for name in config.get("architectures") or () if name in KINDS), None)
        if name is not None:
            return audio_classifier(path, name, bona_fide, normalize)
        path = _weights_in(path)
    if bona_fide is not None:
        raise InputError("--bona-fide: is for audio classifiers of transformers; others have no labels")
    return _of_file(path, normalize, attention_heads, config)


def _of_file(path: Path, normalize: bool | None, attention_heads: int | None, config: Mapping[str, Any]) -> PublicModel:
    """Read the content of a file; ``config`` is the content of a ``config.json`` beside it, if any."""
    content, where = read_file(path), str(path)
    tensors = unwrapped(_tensors(content, where))
    if any(name.startswith("ssl_model.") for name in tensors):
        return ssl_anti_spoofing(tensors, where, normalize, attention_heads)
    if any(name.startswith("m_ssl.") for name in tensors):
        return antideepfake(tensors, where, normalize, attention_heads)
    if "LL.weight" in tensors:
        raise InputError(f"{where}: is a head alone, AASIST without the encoder that it was trained on (ssl_model.*)")
    if "pos_S" in tensors:
        return raw_aasist(tensors, where)
    if {"post_extract_proj.weight", f"{_TUNED}post_extract_proj.weight"} & tensors.keys():
        told = ((field(content, *model), field(content, *task)) for model, task in _OF_FAIRSEQ)
        options, task = next((one for one in told if one[0] is not None), (None, None))
        return _fairseq(tensors, where, options, task, normalize, attention_heads)
    if config.get("model_type"):
        raise InputError(
            f"{path.parent}: is a {(config.get('architectures') or ['model'])[0]} of transformers, not a classifier "
            f"that is read ({', '.join(KINDS)}); an encoder needs no import: give it as model.backbone.init_args.source"
        )
    raise InputError(f"{where}: its layout is not known (its first tensor is {min(tensors)}); supported are: {KNOWN}")


_OF_FAIRSEQ = (
    (("cfg", "model"), ("cfg", "task")),
    (("args",), ("args",)),  # earlier versions
    (("model_cfg",), ("task_cfg",)),  # as s3prl converts it
)
"""Where fairseq's checkpoints have the options of the encoder, and those of its training."""
_TUNED = "w2v_encoder.w2v_model."
"""Before the names of an encoder that was fine-tuned to recognise speech."""


def _fairseq(
    tensors: Mapping[str, Tensor],
    where: str,
    options: Any,
    task: Any,
    normalize: bool | None,
    attention_heads: int | None,
) -> PublicModel:
    """Read an encoder alone; of one that was fine-tuned to recognise speech, what is below its head."""
    if tuned := part(tensors, _TUNED):
        inner = field(options, "w2v_args")
        options = field(inner, "model") or inner
        tensors = tuned
    told = field(task, "normalize")
    normal = normalize if normalize is not None else told
    if not isinstance(normal, bool):
        raise InputError(
            f"{where}: does not say whether its waveforms were normalised: give --normalize true or false (in "
            "Python normalize=); XLSR-53, XLS-R and MMS were trained on normalised ones, wav2vec 2.0 base was not"
        )
    encoder = fairseq_encoder(tensors, where, normal, options, attention_heads)
    return PublicModel("fairseq", encoder)


def _tensors(content: Any, where: str) -> dict[str, Tensor]:
    """The tensors of a file by name, taken out of the mappings that contain them.

    Raises:
        InputError: there are none, or other values are among them.
    """
    for _ in range(2):
        if not isinstance(content, Mapping) or any(isinstance(one, Tensor) for one in content.values()):
            break
        content = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), content)
    if not isinstance(content, Mapping) or not any(isinstance(one, Tensor) for one in content.values()):
        raise InputError(f"{where}: has no tensors by name; supported are: {KNOWN}")
    for name, one in content.items():
        if not isinstance(one, Tensor) or not isinstance(name, str):
            raise InputError(f"{where}: has {str(name)[:100]!r}, which is not a tensor, among its tensors")
    return dict(content)


def _config_of(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder; empty if there is none.

    Raises:
        InputError: it cannot be read, or is of a model that is already ours.
    """
    path = folder / CONFIG
    if not path.is_file():
        return {}
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("architectures") or [], list):
        raise InputError.at(path, "is not a model's")
    if "backbone_sha256" in config:
        raise InputError(f"{folder}: is already a model of moelora_ad: score with it, --model {folder}")
    return config


def _weights_in(folder: Path) -> Path:
    """The file of tensors in a folder that is not a classifier of transformers.

    Raises:
        InputError: there is none, or more than one.
    """
    found = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
    usual = [path for path in found if path.name in ("model.safetensors", "pytorch_model.bin")]
    if len(usual or found) == 0:
        raise InputError(f"{folder}: has no weights ({', '.join(_WEIGHTS)})")
    if not usual and len(found) > 1:
        raise InputError(f"{folder}: has several files of weights, name one: {', '.join(path.name for path in found)}")
    return (usual or found)[0]


def _downloaded(source: str, revision: str | None) -> Path:
    """The folder of the local hub cache that has the files of a repository."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise InputError(f"{source}: no such file or folder")
    with downloading(f"{source}: no such file or folder"):
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(_DOWNLOADED)))

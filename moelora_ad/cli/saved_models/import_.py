"""The command import: a model that others have published, as one of ours."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from moelora_ad.cli.arguments import OneLineArgumentParser, new_folder
from moelora_ad.errors import InputError, counted

if TYPE_CHECKING:
    from moelora_ad.models.detector import Detector
    from moelora_ad.models.saving.public.contents import PublicModel

_SOURCE = """a file (.pt, .pth, .ckpt, .bin, .safetensors), a folder, or an id on the Hugging Face hub. Detectors:
SSL_Anti-spoofing with AASIST, AntiDeepfake, AASIST and AASIST-L, audio classifiers of transformers (wav2vec 2.0,
HuBERT, WavLM, Whisper, AST). Encoders: wav2vec 2.0, XLSR-53 and XLS-R of fairseq, which become a backbone's folder"""


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code."""
    parser = OneLineArgumentParser(
        prog=f"{program} import",
        description="A model that others have published, as one of ours. Nothing in its files is executed.",
    )
    parser.add_argument("source", metavar="SOURCE", help=_SOURCE)
    parser.add_argument("--to", required=True, metavar="DIR", help="folder of the model or the encoder, a new one")
    parser.add_argument(
        "--bona-fide",
        metavar="LABEL",
        help="the label of bona fide, for a classifier whose labels are ambiguous",
    )
    parser.add_argument(
        "--normalize",
        choices=("true", "false"),
        help="whether waveforms get zero mean and unit variance (default: as in the file or its publisher's code)",
    )
    parser.add_argument(
        "--attention-heads",
        type=int,
        metavar="N",
        help="attention heads, if the encoder's width does not determine them",
    )
    parser.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="length of the clips that are scored (default: the publisher's)",
    )
    parser.add_argument("--revision", help="commit, tag or branch of the hub repository")
    arguments = parser.parse_args(argv[1:])
    try:
        _import(program, arguments)
    except InputError as error:
        parser.error(str(error))
    return 0


def _import(program: str, arguments: argparse.Namespace) -> None:
    folder, seconds = new_folder(arguments.to), arguments.window
    if seconds is not None and not 0.1 <= seconds <= 3_600:
        raise InputError(f"--window: must be 0.1 s to an hour, not {seconds:g}")
    if arguments.attention_heads is not None and arguments.attention_heads < 1:
        raise InputError(f"--attention-heads: must be at least 1, not {arguments.attention_heads}")
    from moelora_ad.audio import SAMPLE_RATE
    from moelora_ad.models.detector import Detector
    from moelora_ad.models.saving.files import of_a_run
    from moelora_ad.models.saving.public.importing import read_public

    if (told := of_a_run(Path(arguments.source))) is not None:
        raise InputError(told)
    public = read_public(
        arguments.source,
        revision=arguments.revision,
        bona_fide=arguments.bona_fide,
        normalize=None if arguments.normalize is None else arguments.normalize == "true",
        attention_heads=arguments.attention_heads,
    )
    if public.classifier is None:
        if seconds is not None:
            raise InputError("--window: is for detectors, and this is an encoder without a classifier")
        assert public.encoder is not None
        public.encoder.write_whole(folder)
        _tell_encoder(program, folder, public)
        return
    window = None if seconds is None else round(seconds * SAMPLE_RATE)
    _tell_detector(program, folder, public, Detector.of_public_model(public, folder, window))


def _files(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    return f"{folder}: {', '.join(str(path.relative_to(folder)) for path in files)}; {size / 1e6:.1f} MB in all"


def _tell_encoder(program: str, folder: Path, public: "PublicModel") -> None:
    assert public.encoder is not None
    config = public.encoder.config
    print(_files(folder))
    print(
        f"an encoder of {public.layout} without a classifier: {counted(config.num_hidden_layers, 'layer')}, width "
        f"{config.hidden_size}, {counted(config.num_attention_heads, 'attention head')}, waveforms "
        f"{'' if public.encoder.extractor.do_normalize else 'not '}normalised"
    )
    backbone = "HubertBackbone" if config.model_type == "hubert" else "Wav2Vec2Backbone"
    print(
        f"next: {program} fit --config FILE --model.backbone moelora_ad.models.{backbone} "
        f"--model.backbone.init_args.source {quote(str(folder))}"
    )


def _tell_detector(program: str, folder: Path, public: "PublicModel", detector: "Detector") -> None:
    from moelora_ad.audio import SAMPLE_RATE

    parts = f"{type(detector.backbone).__name__} and {type(detector.classifier).__name__}"
    count = detector.parameter_counts()["total"]
    print(_files(folder))
    print(
        f"read as {public.layout}: {parts}, {count:,} parameters, clips of {detector.window / SAMPLE_RATE:g} s; scores "
        "are the difference of its two logits, higher for bona fide"
    )
    place = quote(str(folder))
    print(f"scores are not calibrated: {program} calibrate DEV_SCORES.csv --model {place}")
    print(f"next: {program} score FILES --model {place}")

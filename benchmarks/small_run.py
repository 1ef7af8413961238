"""A training run that takes seconds: a small random encoder on some of the quickstart's speech."""

import csv
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

CORPUS = Path(__file__).parents[1] / "experiments" / "quickstart" / "corpus" / "MiniLA"


def write_config(folder: Path) -> Path:
    """Write encoder, manifests and configuration of the small run, and return the configuration's path."""
    torch.manual_seed(0)
    encoder = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    Wav2Vec2Model(encoder).save_pretrained(folder / "encoder")
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder / "encoder")
    segment = {"samples": 8_000}
    mixture = {"num_experts": 2, "rank": 2, "top_k": 1}
    logger = {"save_dir": "runs", "name": "small", "version": "run"}
    config = {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 6,
            "val_check_interval": 4,
            "accumulate_grad_batches": 2,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger},
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
        },
        "early_stopping": {"patience": 100},
        "model": {
            "backbone": {
                "class_path": "moelora_ad.models.Wav2Vec2Backbone",
                "init_args": {"source": str(folder / "encoder")},
            },
            "adaptation": {"class_path": "moelora_ad.adapters.MoELoRA", "init_args": mixture},
            "classifier": "moelora_ad.models.MeanPooling",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {
            "train": write_manifest(folder, "train", "trn", 8),
            "val": write_manifest(folder, "dev", "trl", 4),
            "test": {"eval": write_manifest(folder, "eval", "trl", 4)},
            "batch_size": 2,
            "eval_batch_size": 3,
            "train_segment": segment | {"position": "random"},
            "eval_segment": segment,
        },
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_manifest(folder: Path, part: str, kind: str, count: int) -> dict[str, Any]:
    """Write a manifest of the first ``count`` utterances of each class of a part of the quickstart's corpus, and return
    the configuration of the corpus."""
    protocol = CORPUS / "protocols" / f"MiniLA.cm.{part}.{kind}.txt"
    rows = [line.split() for line in protocol.read_text().splitlines()]
    chosen = [row for key in ("bonafide", "spoof") for row in [row for row in rows if row[4] == key][:count]]
    with open(folder / f"{part}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "utterance", "label"])
        writer.writerows([CORPUS / "flac" / f"{row[1]}.flac", row[1], row[4]] for row in chosen)
    init_args = {"path": str(folder / f"{part}.csv"), "name": part}
    return {"class_path": "moelora_ad.corpora.Manifest", "init_args": init_args}

"""A run's detector and corpora, read back from its folder."""

import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from moelora_ad.analysis.trained import batches, load_trained, trials_of
from moelora_ad.data import workers as reading
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable


def test_the_scores_are_those_of_the_run(fitted, tmp_path):
    run = tmp_path / "tiny" / "version_0"
    shutil.copytree(fitted["mixture", 2], run)
    trained = load_trained(run)
    assert (trained.name, trained.seed, trained.folder) == ("mixture", 2, run)
    assert not trained.detector.training
    assert list(trials_of(trained, "train").columns.utterance)
    counts = []
    for name in ("dev", "other"):
        trials = trials_of(trained, name)
        read = list(batches(trained, trials, batch_size=3, advance=counts.append))
        assert torch.cat([batch.trials for batch in read]).tolist() == list(range(len(trials)))
        with torch.inference_mode():
            logits = torch.cat([trained.detector(batch.waveforms, batch.lengths) for batch in read])
        (path,) = (run / "scores").glob(f"*/{name}.csv")
        np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), ScoreTable.read(path).scores, atol=1e-6)
    assert sum(counts) == 35 + 36

    # A checkpoint can be given by its path; a run without a record is read if it has only one checkpoint.
    (best,) = [path for path in (run / "checkpoints").glob("*.ckpt") if path.name != "last.ckpt"]
    assert trained.checkpoint == best
    assert load_trained(run / "checkpoints" / "last.ckpt").checkpoint.name == "last.ckpt"
    (run / "run.json").unlink()
    again = load_trained(run)
    assert (again.checkpoint, again.name) == (best, run.name)
    (best.parent / "another.ckpt").write_bytes(best.read_bytes())
    (run / "scores" / "plot.png").write_bytes(b"no checkpoint")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    advice = "give the folder of a run, or a checkpoint in it"
    for given, words in (
        (run, "2 checkpoints to choose from"),
        (run / "checkpoints" / "none.ckpt", f"no such checkpoint; {advice}"),
        (run / "config.yaml", f"config.yaml: is no checkpoint of a run, as there is no .*; {advice}"),
        (run / "scores" / "plot.png", "^checkpoint: .*plot.png is not a checkpoint"),
        (run / "checkpoints", f"checkpoints: is not the folder of a run, which has config.yaml .*; {advice}"),
        (run.parent, f"tiny: is not the folder of a run, .*; {advice}"),
        (tmp_path / "model", f"model: is the folder of a model, not of a run, .*; {advice}"),
    ):
        with pytest.raises(InputError, match=words) as error:
            load_trained(given)
        assert "--" not in str(error.value)  # there is no option to name a checkpoint or a configuration
    with pytest.raises(InputError, match="no set 'another': choose from other, dev, train"):
        trials_of(trained, "another")


def test_an_analysis_reads_as_all_else_does(fitted, monkeypatch):
    """The workers survive signals sent to their process group, and the space in shared memory is checked first."""
    trained = load_trained(fitted["lora", 1])
    trials = trials_of(trained, "dev")
    readers = []
    whole = [batch.trials for batch in batches(trained, trials)]
    for number, batch in enumerate(batches(trained, trials, batch_size=2, workers=1)):
        if number == 0:
            readers = multiprocessing.active_children()
            for reader in readers:
                for sent in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                    os.kill(reader.pid, sent)
        assert len(batch.trials) <= 2
    assert len(readers) == 1
    assert 2 * number + len(batch.trials) == len(trials) == len(torch.cat(whole))

    monkeypatch.setattr(reading, "_free_bytes", lambda: 100)
    with pytest.raises(InputError, match="/dev/shm is too small"):
        next(batches(trained, trials, workers=1))

"""What the data module makes of corpora: joined and weighted, in the same batches for any kind of worker."""

import itertools
import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import Callback

from moelora_ad.adapters import LoRA
from moelora_ad.audio import AdditiveNoise, Crops, FullUtterance, RawBoost, Segment, keyed_generator, read_audio
from moelora_ad.corpora import Manifest, Trial, TrialList
from moelora_ad.data.dataset import padded
from moelora_ad.data.samplers import Key
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.inference import Scorer
from moelora_ad.models import AttentiveStatistics, MeanPooling, Wav2Vec2Backbone
from moelora_ad.training import AudioDeepfakeDataModule, DetectionModule, TrialDataset


@pytest.fixture
def corpora(tmp_path, data) -> dict[str, Manifest]:
    """Two corpora: 8 trials (4 bona fide) and 12 trials (6 bona fide)."""
    source = data()
    return {"small": source.val, "large": source.train}


def keys(source: AudioDeepfakeDataModule, epoch: int = 0) -> list[Key]:
    source.setup("fit")
    sampler = source.train_dataloader().sampler
    sampler.set_epoch(epoch)
    return [key for batch in sampler for key in batch]


# Joined corpora


def test_joined_corpora_are_drawn_by_their_sizes(data, corpora):
    source = data(train=corpora, batch_size=5)
    drawn = [key.trial for key in keys(source)]
    assert sorted(drawn) == list(range(20))
    assert [trial.utterance.split("/")[0] for trial in source.train_trials] == ["small"] * 8 + ["large"] * 12


def test_weights_are_shares_of_an_epoch(data, corpora):
    source = data(train=corpora, train_weights={"large": 1.0, "small": 3.0}, batch_size=5)
    drawn = Counter(key.trial for key in keys(source))
    assert sum(drawn[trial] for trial in range(8)) == 15
    assert {drawn[trial] for trial in range(8)} == {1, 2}
    assert sum(drawn[trial] for trial in range(8, 20)) == 5


def test_classes_in_balance_within_each_corpus(data, corpora, tmp_path):
    path = tmp_path / "uneven.csv"
    rows = Path(corpora["large"].path).read_text().splitlines()
    path.write_text("\n".join([rows[0], *rows[1:3], *rows[7:]]) + "\n")  # 2 bona fide utterances, 6 spoofs
    source = data(train={"uneven": Manifest(path), "even": corpora["small"]}, class_balanced=True, batch_size=4)
    drawn = [source.train_trials[key.trial] for key in keys(source)]
    counts = Counter((trial.utterance.split("/")[0], trial.label) for trial in drawn)
    assert counts == {("uneven", 1): 4, ("uneven", 0): 4, ("even", 1): 4, ("even", 0): 4}
    alone = data(train=Manifest(path), class_balanced=True, batch_size=4)
    assert Counter(alone.train_trials[key.trial].label for key in keys(alone)) == {0: 4, 1: 4}


def test_a_trial_that_comes_up_again_is_cropped_anew(data, corpora):
    source = data(train=corpora, train_weights={"large": 1.0, "small": 9.0}, batch_size=5)
    again = next(key for key in keys(source) if key.repeat)
    dataset = source.train_dataloader().dataset
    assert not torch.equal(dataset[[again]].waveforms, dataset[[again._replace(repeat=0)]].waveforms)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_weights": {"small": 1.0}}, "no weight for 'large'; give one for each of 'large', 'small'"),
        ({"train_weights": {"small": 1.0, "large": 1.0, "x": 1.0}}, "no corpus 'x' in data.train"),
        ({"train_weights": {"small": 1.0, "large": -1.0}}, "the weight of 'large' is -1.0; give a positive number"),
        ({"train_weights": {"small": 0.0, "large": 1.0}}, "the weight of 'small' is 0.0; give a positive number"),
        ({"train_weights": {"small": float("nan"), "large": 1.0}}, "the weight of 'small' is nan"),
    ],
)
def test_weights_that_cannot_work_are_refused(data, corpora, arguments, message):
    with pytest.raises(InputError, match=message):
        data(train=corpora, **arguments)
    with pytest.raises(InputError, match=r"needs data\.train to be several corpora"):
        data(train_weights={"small": 1.0})


def test_joined_corpora_that_cannot_work_are_named(data, corpora, tmp_path):
    path = tmp_path / "spoofs.csv"
    path.write_text(
        "".join(line for line in Path(corpora["large"].path).read_text().splitlines(True) if "bonafide" not in line)
    )
    joined = {"small": corpora["small"], "spoofs": Manifest(path)}
    data(train=joined).setup("fit")  # a corpus may have one class only if all together have both
    with pytest.raises(InputError, match=r"data\.train\.spoofs: spoofs has no bona fide trials among 6"):
        data(train=joined, class_balanced=True).setup("fit")
    with pytest.raises(InputError, match=r"data\.train: .*no bona fide trials among 12"):
        data(train={"a": Manifest(path), "b": Manifest(path)}).setup("fit")
    with pytest.raises(InputError, match="'a/b' cannot name a list"):
        data(train={"a/b": corpora["small"]}).setup("fit")


# Batches


def batches(source: AudioDeepfakeDataModule) -> list[tuple[torch.Tensor, torch.Tensor]]:
    source.setup("fit")
    loader = source.train_dataloader()
    drawn = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        drawn += [(batch.trials, batch.waveforms) for batch in loader]
    return drawn


@pytest.mark.parametrize(
    ("workers", "context"), [(1, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
def test_batches_are_the_same_bit_for_bit_for_any_workers(data, corpora, workers, context):
    def drawn(**arguments):
        joined = {"train": corpora, "train_weights": {"small": 2.0, "large": 1.0}, "class_balanced": True}
        return batches(data(train_augmentation=RawBoost(algorithm=5), **joined, **arguments))

    alone, shared = drawn(), drawn(num_workers=workers, multiprocessing_context=context)
    assert len(alone) == 10
    for one, two in zip(alone, shared, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


def test_clips_of_different_lengths_are_padded_and_their_lengths_told():
    clips = [np.full(n, 1.0, np.float32) for n in (2, 3)]
    rows, lengths = padded(clips, None)
    assert rows.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert lengths.tolist() == [2, 3]
    rows, lengths = padded(clips[:1], 4)
    assert rows.tolist() == [[1, 1, 0, 0]]
    assert lengths.tolist() == [2]
    assert padded(clips[:1], 2)[1] is None
    assert padded([clips[0], clips[0]], None)[1] is None


def test_a_segment_that_is_padded_keeps_its_width_and_augmentation_leaves_the_padding(data):
    source = data(train_segment=Segment(200_000, short="pad"), train_augmentation=RawBoost(algorithm=5))
    source.setup("fit")
    batch = source.train_dataloader().dataset[[Key(0, 0), Key(0, 1)]]
    assert batch.waveforms.shape == (2, 200_000)
    for row, length, trial in zip(batch.waveforms, batch.lengths, batch.trials.tolist(), strict=True):
        assert length == len(read_audio(source.train_trials[trial].audio))
        assert row[length - 1] != 0
        assert not row[length:].any()


@pytest.mark.parametrize("position", ["first", "centre", "random"])
def test_an_utterance_is_augmented_whole_before_the_crop_if_asked_for(data, position):
    boost, segment = RawBoost(algorithm=8), Segment(20_000, position)
    source = data(train_segment=segment, train_augmentation=boost, augment_before_crop=True, seed=7)
    source.setup("fit")
    keys = [Key(3, index, repeat) for index, repeat in ((0, 0), (1, 0), (1, 1))]
    batch = source.train_dataloader().dataset[keys]
    assert batch.lengths is None
    for row, key in zip(batch.waveforms.numpy(), keys, strict=True):
        trial = source.train_trials[key.trial]
        draws = keyed_generator(7, 3, trial.utterance + "\0" * bool(key.repeat) + "1" * key.repeat)
        whole = boost(read_audio(trial.audio), draws)
        start = segment.start(len(whole), draws)
        np.testing.assert_array_equal(row, np.resize(whole[start : start + 20_000], 20_000))
    assert not torch.equal(batch.waveforms[1], batch.waveforms[2])
    cropped_first = data(train_segment=segment, train_augmentation=boost, seed=7)
    cropped_first.setup("fit")
    assert not torch.equal(cropped_first.train_dataloader().dataset[keys].waveforms, batch.waveforms)


@pytest.mark.parametrize("before_crop", [False, True])
def test_noise_that_cannot_be_read_is_no_fault_of_the_trials(data, tmp_path, before_crop):
    noise = AdditiveNoise(tmp_path / "musan")
    source = data(train_on_error="report", train_augmentation=noise, augment_before_crop=before_crop)
    source.setup("fit")
    with pytest.raises(InputError, match="musan: no such folder; it should hold recordings"):
        source.train_dataloader().dataset[[Key(0, 0)]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "a batch size of 0 is too small"),
        ({"eval_batch_size": 0}, "a batch size of 0 is too small"),
        ({"eval_batch_size": -2}, "a batch size of -2 is too small"),
        ({"num_workers": -1}, "data.num_workers is -1: give 0 or more"),
        ({"seed": -1}, "data.seed is -1: give 0 or more"),
        ({"train_segment": Segment(4)}, "data.train_segment: 4 samples are too few for an encoder: give 1600 or more"),
        ({"eval_segment": Crops(2, 1_599)}, "data.eval_segment: 1599 samples are too few for an encoder"),
    ],
)
def test_numbers_that_are_too_small_are_refused(data, arguments, message):
    with pytest.raises(InputError, match=message):
        data(**arguments)


# Scores of whole utterances and of several crops


def score(data, model, folder, trainer, **arguments) -> dict[str, float]:
    source = data(test={"eval": data().test["in_domain"]}, **arguments)
    trainer(folder).test(model, datamodule=source, verbose=False)
    table = ScoreTable.read(folder / "scores" / "eval.csv")
    return {trial.utterance: value for trial, value in zip(table.trials, table.scores.tolist(), strict=True)}


@pytest.fixture
def wav2vec2(small_wav2vec2):
    def build(classifier=MeanPooling) -> DetectionModule:
        torch.manual_seed(0)
        return DetectionModule(Wav2Vec2Backbone(small_wav2vec2), LoRA(2), classifier)

    return build


@pytest.mark.parametrize("classifier", [MeanPooling, AttentiveStatistics])
def test_whole_utterances_in_batches_of_like_length_score_as_one_by_one(data, wav2vec2, tmp_path, trainer, classifier):
    model = wav2vec2(classifier)
    whole = {"eval_segment": FullUtterance()}
    alone = score(data, model, tmp_path / "alone", trainer, eval_batch_size=1, **whole)
    together = score(data, model, tmp_path / "together", trainer, eval_batch_size=3, **whole)
    assert list(together) == list(alone)
    assert list(together.values()) == pytest.approx(list(alone.values()), abs=1e-5)
    assert len(set(alone.values())) == 8


@pytest.mark.parametrize(
    ("evaluation", "wanted"),
    [
        (Segment(16_000), (16_000, 16_000)),
        (Segment(16_000, short="pad"), (16_000, 1_600)),
        (Crops(3, samples=8_000), (8_000, 8_000)),
        (FullUtterance(), (32_000, 1_600)),
    ],
)
def test_a_detector_scores_files_in_the_clips_that_it_was_evaluated_on(data, evaluation, wanted):
    assert data(train_segment=Segment(32_000), eval_segment=evaluation).scored_clips == wanted


@pytest.mark.parametrize("evaluation", [FullUtterance(), Segment(200_000, short="pad")])
def test_score_gives_unrepeated_utterances_the_scores_of_test(data, wav2vec2, tmp_path, trainer, evaluation):
    model = wav2vec2()
    source = data(eval_segment=evaluation, eval_batch_size=3)
    wanted = score(data, model, tmp_path, trainer, eval_batch_size=3, eval_segment=evaluation)
    detector = model.detector
    _, detector.fill = source.scored_clips
    scorer = Scorer(detector, window=200_000, device="cpu")  # longer than any utterance
    trials = source.test["in_domain"].trials()
    found = {trial.utterance: scorer(trial.audio).score for trial in trials}
    assert [found[name] for name in wanted] == pytest.approx(list(wanted.values()), abs=1e-5)


@pytest.mark.parametrize("evaluation", [FullUtterance(), Segment(8_000, short="pad"), Crops(2, 8_000, short="pad")])
def test_utterances_without_a_frame_of_the_encoder_get_their_scores(data, wav2vec2, tmp_path, trainer, evaluation):
    files = {samples: tmp_path / f"{samples}.wav" for samples in (1, 100, 399, 1_599, 4_000)}
    for samples, path in files.items():
        soundfile.write(path, np.random.default_rng(samples).uniform(-0.5, 0.5, samples), 16_000)
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{path}\n" for path in files.values()))
    source = data(test={"brief": Manifest(tmp_path / "list.csv")}, eval_segment=evaluation)
    model = wav2vec2()
    trainer(tmp_path).predict(model, datamodule=source, return_predictions=False)
    found = ScoreTable.read(tmp_path / "scores" / "brief.csv").scores
    detector = model.detector
    _, detector.fill = source.scored_clips
    scorer = Scorer(detector, window=8_000, device="cpu")
    assert list(found) == pytest.approx([scorer(path).score for path in files.values()], abs=1e-5)


def test_batches_of_whole_utterances_come_longest_first(data):
    source = data(eval_segment=FullUtterance(), eval_batch_size=3)
    source.setup("test")
    loader = source.test_dataloader()[0]
    lengths = [
        batch.lengths.tolist() if batch.lengths is not None else [batch.waveforms.shape[1]] * len(batch.trials)
        for batch in loader
    ]
    flat = list(itertools.chain(*lengths))
    assert flat == sorted(flat, reverse=True)
    trials = source.eval_trials["in_domain"]
    assert sorted(flat) == sorted(len(read_audio(trial.audio)) for trial in trials)


def test_the_score_of_several_crops_is_their_mean(data, wav2vec2, tmp_path, trainer):
    model = wav2vec2()
    crops = Crops(3, samples=16_000)
    scores = score(data, model, tmp_path, trainer, eval_batch_size=3, eval_segment=crops)
    model.eval()
    for trial in data().test["in_domain"].trials():
        whole = read_audio(trial.audio)
        odds = []
        for start in crops.starts(len(whole)):
            with torch.no_grad():
                logits = model(torch.from_numpy(np.resize(whole[start : start + 16_000], 16_000))[None])[0]
            odds.append(float(logits[1] - logits[0]))
        assert scores[trial.utterance] == pytest.approx(sum(odds) / 3, abs=1e-5)


def test_each_crop_of_an_utterance_is_trained_with_its_label(data, wav2vec2, tmp_path, trainer):
    """The loss of the first batch, computed by hand: both crops of a trial have the weight of its class."""
    model, source = wav2vec2(), data(train_segment=Crops(2, samples=4_000))

    class ByHand(Callback):
        def on_train_batch_start(self, trainer, module, batch, number):
            assert batch.waveforms.shape == (2 * len(batch.trials), 4_000)
            with torch.no_grad():
                odds = module(batch.waveforms, batch.lengths).log_softmax(-1)
            weights = torch.tensor([0.1, 0.9])
            pairs = [(clip, int(batch.labels[clip // 2])) for clip in range(len(odds))]
            total = sum(weights[label] for _, label in pairs)
            self.expected = float(-sum(weights[label] * odds[clip, label] for clip, label in pairs) / total)

        def on_train_batch_end(self, trainer, module, outputs, batch, number):
            self.loss = float(outputs["loss"])

    by_hand = ByHand()
    trainer(tmp_path, max_steps=1, callbacks=[by_hand]).fit(model, datamodule=source)
    assert by_hand.loss == pytest.approx(by_hand.expected, rel=1e-5)


# Memory


def many(count: int, files: list[str]) -> TrialList:
    return TrialList(
        Trial(f"LA_T_{i:07d}", files[i % len(files)], i % 2, f"LA_{i % 50:04d}", f"A{i % 19:02d}", corpus="many")
        for i in range(count)
    )


def own_memory(process: int) -> int:
    """Bytes that a process shares with no other process."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_workers_memory_is_flat_over_an_epoch(data, context):
    """A worker that kept its batches would grow by 97 MB; first calls into libraries cost some 15 MB."""
    small = data()
    small.setup("fit")
    files = [trial.audio for trial in small.train_trials]

    class Many(Manifest):
        def trials(self) -> TrialList:
            return many(100_000, files)

    source = data(train=Many("many.csv"), num_workers=1, multiprocessing_context=context, batch_size=16)
    source.setup("fit")
    loader = source.train_dataloader()
    used = []
    for number, _ in enumerate(loader):
        if number in (10, 200):
            used.append(own_memory(loader._iterator._workers[0].pid))
        if number == 200:  # ends the batches here: a worker that is stopped while it sends one can abort
            loader._iterator._sampler_iter = iter(())
    assert used[1] - used[0] < 40e6


def test_a_list_of_trials_is_sent_to_a_worker_in_few_bytes():
    trials = many(100_000, ["corpora/LA/flac/LA_T_0000000.flac"])
    assert len(pickle.dumps(TrialDataset(trials, Segment(), 1))) < 100 * len(trials)

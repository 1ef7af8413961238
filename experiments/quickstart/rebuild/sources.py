"""The human recordings: where they are in the Debian packages, who speaks, in which language, and what is said."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from audio import RATE, Samples, decode, resample, tidy
from environment import DATA_PACKAGES, FESTIVAL_VOICES, RebuildError
from numpy.typing import NDArray

#: Languages with texts in Fish Fillets; recordings exist in two of them.
FILLETS_TEXTS = ("cs", "nl", "fr", "it", "es", "ru", "de", "bg")
FILLETS_VOICES = ("cs", "nl")
ASTERISK_VOICES = ("en", "es", "fr", "it", "ru")
#: Asterisk folders without sentences.
ASTERISK_SKIPPED = {"silence", "letters", "phonetic"}
#: The unit-selection voice of festvox-ru ships the recordings that it was built from.
RUSSIAN_VOICE = FESTIVAL_VOICES / "russian" / "msu_ru_nsh_clunits"

_LUA_STRING = r'"((?:[^"\\]|\\.)*)"'
_LUA_DIALOG = re.compile(rf'dialogId\("([^"]+)",\s*"[^"]*",\s*{_LUA_STRING}\)\s*(?:dialogStr\({_LUA_STRING}\))?')
_FILLETS_SPEAKER = re.compile(r"[^-]+-([a-z]+)-")
_TUX_STAMP = re.compile(r"(.*)_desc_([a-z]{2})\.ogg")
_FESTVOX_LINE = re.compile(r'\(\s*(\S+)\s+"(.*)"')


@dataclass(frozen=True)
class Recording:
    """One human recording as a package ships it."""

    path: Path
    speaker: str
    language: str
    text: str | None


@dataclass(frozen=True)
class BonaFide:
    """A recording after decoding: 16 kHz, trimmed, at most 5 s, at the common level."""

    speaker: str
    language: str
    text: str | None
    samples: NDArray[np.float32]


class Index:
    """Recordings of the wanted speakers, and the sentences of every language."""

    def __init__(self, share: Path, speakers: Collection[str]) -> None:
        self.recordings: list[Recording] = []
        self._speakers = speakers
        self._texts: dict[str, set[str]] = defaultdict(set)
        self._add_fillets(share / "games" / "fillets-ng")
        self._add_tuxpaint(share / "tuxpaint" / "stamps")
        self._add_asterisk(share / "asterisk" / "sounds")
        self._add_festvox(RUSSIAN_VOICE)
        self.texts = {language: sorted(texts) for language, texts in self._texts.items()}
        missing = set(speakers) - {recording.speaker for recording in self.recordings}
        if missing:
            raise RebuildError(f"no recording of {', '.join(sorted(missing))} was found in {share}")

    def _add(self, path: Path, speaker: str, language: str, text: str | None) -> None:
        if speaker in self._speakers:
            self.recordings.append(Recording(path, speaker, language, text))

    def _add_fillets(self, root: Path) -> None:
        """Fish Fillets NG: dialogs in Lua, sound/<level>/<language>/<dialog>.ogg; the dialog id names the actor."""
        for language in FILLETS_TEXTS:
            name = f"dialogs_{language}.lua"
            for script in [*root.glob(f"script/*/{name}"), *root.glob(f"script/share/*/{name}")]:
                level = script.parent.relative_to(root / "script")
                for dialog, (english, translation) in read_dialogs(script).items():
                    if language == "cs" and english:
                        self._texts["en"].add(english)
                    if not translation:
                        continue
                    self._texts[language].add(translation)
                    path = root / "sound" / level / language / f"{dialog}.ogg"
                    actor = _FILLETS_SPEAKER.match(dialog)
                    if language in FILLETS_VOICES and actor and path.exists():
                        self._add(path, f"fil_{language}_{actor[1]}", language, translation)

    def _add_tuxpaint(self, root: Path) -> None:
        """Tux Paint stamps: <stamp>_desc_<language>.ogg reads the line of that language in <stamp>.txt."""
        for path in root.rglob("*_desc_*.ogg"):
            match = _TUX_STAMP.fullmatch(str(path))
            if not match:
                continue
            stamp, language = match.groups()
            text = read_stamp_text(Path(f"{stamp}.txt"), language)
            if text:
                self._texts[language].add(text)
            self._add(path, f"tux_{language}", language, text)

    def _add_asterisk(self, root: Path) -> None:
        """Asterisk core sounds: one voice a language, raw G.722, no texts."""
        for language in ASTERISK_VOICES:
            for voice in root.glob(f"{language}_*"):
                for path in voice.rglob("*.g722"):
                    if ASTERISK_SKIPPED.isdisjoint(path.relative_to(root).parent.parts):
                        self._add(path, f"ast_{language}", language, None)

    def _add_festvox(self, root: Path) -> None:
        """festvox-ru: the recordings of the voice nsh with their prompts, stress marks (+) taken out."""
        prompts = root / "etc" / "txt.done.data"
        for line in prompts.read_text(encoding="utf-8", errors="replace").splitlines():
            match = _FESTVOX_LINE.match(line)
            if match and (path := root / "wav" / f"{match[1]}.wav").exists():
                self._add(path, "nsh_ru", "ru", match[2].replace("+", ""))


def read_dialogs(script: Path) -> dict[str, tuple[str, str]]:
    """Dialog id -> (English text, translation) of a Fish Fillets script."""
    source = script.read_text(encoding="utf-8", errors="replace")
    return {
        match[1]: (match[2].replace('\\"', '"'), (match[3] or "").replace('\\"', '"'))
        for match in _LUA_DIALOG.finditer(source)
    }


def read_stamp_text(path: Path, language: str) -> str | None:
    """The last ``<language>.utf8=`` line of a Tux Paint description, if any."""
    if not path.exists():
        return None
    text = None
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith(f"{language}.utf8="):
                text = line.split("=", 1)[1].strip()
    return text


def read_bona_fide(recording: Recording) -> BonaFide | None:
    """Decode one recording; ``None`` if it is unreadable, silent, under 0.5 s, or too short once trimmed."""
    try:
        samples, rate = decode(recording.path)
    except (OSError, soundfile.LibsndfileError):
        return None
    if len(samples) < rate // 2:
        return None
    samples: Samples = resample(samples - samples.mean(), rate, RATE)
    if np.max(np.abs(samples)) < 1e-3:
        return None
    tidied = tidy(samples)
    if tidied is None:
        return None
    return BonaFide(recording.speaker, recording.language, recording.text, tidied)


def fetch(work: Path) -> None:
    """Download the data packages with apt into ``work``/debs and unpack them into ``work``/data."""
    packages, data = work / "debs", work / "data"
    packages.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["apt-get", "download", "-q", *DATA_PACKAGES], cwd=packages, check=False).returncode:
        raise RebuildError("apt-get download failed: run 'apt-get update' and try again")
    for package in sorted(packages.glob("*.deb")):
        if subprocess.run(["dpkg", "-x", str(package), str(data)], check=False).returncode:
            raise RebuildError(f"dpkg could not unpack {package}")

"""Pass MiniLA's evaluation part through several channels, to test a detector that was trained on one.

    python experiments/study/channels.py --corpora CORPORA --to CORPORA/MiniLA_channels

Each utterance passes through one of five channels, drawn by its id: none, MP3, Opus, the telephone (A-law) or GSM.
The script writes FLAC files and the manifest `channels.csv`, whose column `codec` names the channel.
"""

import argparse
import csv
from pathlib import Path

import soundfile

from moelora_ad.audio import GSM, MP3, ALaw, Opus
from moelora_ad.audio.randomness import keyed_generator
from moelora_ad.corpora import ASVspoof2019Protocol
from moelora_ad.evaluation.score_table import LABEL_WORDS

CHANNELS = {
    "none": None,
    "mp3": MP3((24.0, 32.0)),
    "opus": Opus((12.0, 16.0)),
    "alaw": ALaw(),
    "gsm": GSM(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    given = parser.parse_args()
    corpus = given.corpora / "MiniLA"
    protocol = corpus / "protocols" / "MiniLA.cm.eval.trl.txt"
    given.to.mkdir(parents=True)
    with (given.to / "channels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "utterance", "label", "speaker", "attack", "codec"])
        for trial in ASVspoof2019Protocol("MiniLA", str(protocol), str(corpus / "flac"), split="eval").trials():
            generator = keyed_generator(1, 0, trial.utterance)
            channel = str(generator.choice(list(CHANNELS)))
            sound, rate = soundfile.read(trial.audio, dtype="float32")
            if (codec := CHANNELS[channel]) is not None:
                sound = codec(sound, generator)
            name = f"{trial.utterance}.flac"
            soundfile.write(given.to / name, sound, rate)
            label = LABEL_WORDS[trial.label]
            rows.writerow([name, trial.utterance, label, trial.speaker, trial.attack, channel])


if __name__ == "__main__":
    main()

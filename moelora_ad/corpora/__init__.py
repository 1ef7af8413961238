"""Official distributions and users' own lists -> lists of trials. No audio is opened here."""

from moelora_ad.corpora.asvspoof5 import ASVspoof5
from moelora_ad.corpora.asvspoof2019 import ASVspoof2019, ASVspoof2019Protocol
from moelora_ad.corpora.asvspoof2021 import ASVspoof2021DF, ASVspoof2021LA
from moelora_ad.corpora.combined import Joined
from moelora_ad.corpora.corpus import ClassCounts, Corpus
from moelora_ad.corpora.fakeavceleb import FakeAVCeleb
from moelora_ad.corpora.few import Few
from moelora_ad.corpora.foldered_sets import DFADD, HABLA, JSUT, MLAAD, FakeOrReal, LibriSeVoc, LJSpeech, WaveFake
from moelora_ad.corpora.in_the_wild import InTheWild
from moelora_ad.corpora.listed_sets import ADD, ASVspoofLaundered, Codecfake, DeepfakeEval2024, SpoofCeleb
from moelora_ad.corpora.manifest import Folder, Manifest
from moelora_ad.corpora.protocols.records import ProtocolError
from moelora_ad.corpora.storage.files import StorageError
from moelora_ad.corpora.trial import BONA_FIDE, SPOOF, Trial, TrialList, parse_label

__all__ = [
    "ADD",
    "BONA_FIDE",
    "DFADD",
    "HABLA",
    "JSUT",
    "MLAAD",
    "SPOOF",
    "ASVspoof5",
    "ASVspoof2019",
    "ASVspoof2019Protocol",
    "ASVspoof2021DF",
    "ASVspoof2021LA",
    "ASVspoofLaundered",
    "ClassCounts",
    "Codecfake",
    "Corpus",
    "DeepfakeEval2024",
    "FakeAVCeleb",
    "FakeOrReal",
    "Few",
    "Folder",
    "InTheWild",
    "Joined",
    "LJSpeech",
    "LibriSeVoc",
    "Manifest",
    "ProtocolError",
    "SpoofCeleb",
    "StorageError",
    "Trial",
    "TrialList",
    "WaveFake",
    "parse_label",
]

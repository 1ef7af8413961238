r"""Converts formulas, ``$...$`` and ``$$...$$``, to MathML, which browsers draw without any script."""

import html
import re

from latex2mathml.converter import convert
from mkdocs.structure.pages import Page

_SPAN = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content: str, page: Page, **_: object) -> str:
    """Convert the formulas of a page."""
    content = _SPAN.sub(lambda found: convert(html.unescape(found[1])), content)
    return _BLOCK.sub(lambda found: convert(html.unescape(found[1]), display="block"), content)

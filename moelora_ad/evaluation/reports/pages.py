"""HTML pages without external files: their templates, and plots as parts of them."""

import re

import jinja2
from markupsafe import Markup

from moelora_ad.evaluation.reports.plots import GRID, INK, LINES, PAPER

# The plots' colours on a dark page, in the order of LINES.
DARK_LINES = ("#6cb4f5", "#ff9a52", "#3ccfa0", "#e58fc4", "#d8c74a", "#62d3ec", "#b9c2cc")


def inline_svg(svg: str, prefix: str) -> Markup:
    """Return a plot as a part of a page: its ids differ from those of other plots, and its colours are the page's own.

    Args:
        svg: What matplotlib wrote, with all text escaped.
        prefix: Prefix of the ids, unique on the page; of letters, digits, ``_``, ``-`` and ``.``.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', svg)
    words = 'role="img" style="stroke-linejoin: round; stroke-linecap: butt"'
    svg = re.sub(r"<svg[^>]*>", f"<svg {view[0] if view else ''} {words}>", svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{prefix}-', svg)
    names = {INK: "ink", GRID: "line", PAPER: "paper"} | {c: f"line-{n}" for n, c in enumerate(LINES, 1)}
    return Markup(re.sub(r'style="[^"]*"', lambda style: _with_names(style[0], names), svg))


def _with_names(style: str, names: dict[str, str]) -> str:
    return re.sub("|".join(names), lambda colour: f"var(--{names[colour[0]]})", style)


def template(name: str) -> jinja2.Template:
    """Load the template of a page from the folder beside this module; it may extend other templates there."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moelora_ad.evaluation.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)

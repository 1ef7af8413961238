"""Turns files of the repository into pages: a link that leads out of docs/ adds its file to the site.

So a page can link to ``../../examples/bitfit.py`` as on a code host, and nothing is written twice: README.md is the
home page, other Markdown files are pages, pictures are copied, and any other text is shown as code.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(\]\(|(?:src|href)=\")(?![a-z]+:|#|/)([^)\s\"#]+)")
PICTURES = (".png", ".svg")
LANGUAGES = {".py": "python", ".sh": "sh", ".yaml": "yaml", ".cff": "yaml", ".toml": "toml"}
HOME = "README.md"
# Pages of the section Project, from files at the top of the repository, where these exist.
PROJECT = {"Changelog": "CHANGELOG.md", "Contributing": "CONTRIBUTING.md", "Citation": "CITATION.cff"}

_brought: dict[str, str] = {HOME: "index.md"}  # path in the repository -> path in the site


def on_config(config: MkDocsConfig) -> None:
    """Add the pages of `PROJECT` to the navigation."""
    root = Path(config.config_file_path).parent
    (section,) = (part["Project"] for part in config.nav or [] if "Project" in part)
    section += [{title: _place(path)} for title, path in PROJECT.items() if (root / path).is_file()]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the home page, the pages of the navigation, and all files that pages link to."""
    root = Path(config.config_file_path).parent
    files.append(_file(HOME, root, config))
    for path in _named(config.nav):
        _bring(path.removeprefix("repository/"), root, files, config)
    waiting = [file for file in files if file.is_documentation_page()]
    while waiting:
        file = waiting.pop()
        for _, target in LINK.findall(_prose(file.content_string)):
            path = _resolved(file.src_uri, target)
            new = None if path.startswith(("docs/", "..")) else _bring(path, root, files, config)
            if new is not None and new.is_documentation_page():
                waiting.append(new)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the page's links to where the files are in the site."""
    here = posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        path = _resolved(page.file.src_uri, found[2])
        target = path.removeprefix("docs/") if path.startswith("docs/") else _brought.get(path)
        return found[0] if target is None else found[1] + posixpath.relpath(target, here or ".")

    return LINK.sub(moved, markdown)


def _named(nav: object) -> list[str]:
    """The paths of a navigation that begin with ``repository/``."""
    if isinstance(nav, str):
        return [nav] if nav.startswith("repository/") else []
    parts = nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else []
    return [path for part in parts for path in _named(part)]


def _resolved(src_uri: str, target: str) -> str:
    """The path in the repository of a link's target on a page."""
    origin = next((path for path, place in _brought.items() if place == src_uri), f"docs/{src_uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _bring(path: str, root: Path, files: Files, config: MkDocsConfig) -> File | None:
    path = path.removesuffix(".md") if not (root / path).is_file() else path
    if path in _brought and files.get_file_from_path(_brought[path]):
        return None
    if not (root / path).is_file():
        raise PluginError(f"a page links to {path}, and there is no such file in the repository")
    file = _file(path, root, config)
    files.append(file)
    return file


def _file(path: str, root: Path, config: MkDocsConfig) -> File:
    _brought.setdefault(path, _place(path))
    place, ending = _brought[path], Path(path).suffix
    if ending in (".md", *PICTURES):
        return File.generated(config, place, abs_src_path=os.fspath(root / path))
    text = (root / path).read_text(encoding="utf-8").rstrip()
    fence = f'``` {{.{LANGUAGES.get(ending, "text")} title="{path}"}}\n{text}\n```\n'
    return File.generated(config, place, content=f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n{fence}")


def _place(path: str) -> str:
    return f"repository/{path}{'' if path.endswith(('.md', *PICTURES)) else '.md'}"


def _prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)

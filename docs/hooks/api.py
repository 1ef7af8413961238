"""Generates a page for each package that has public names, from ``__all__`` and docstrings."""

import importlib
from types import ModuleType

from commands import replace
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import moelora_ad

FOLDER = "reference/api"


def on_config(config: MkDocsConfig) -> None:
    """Put the pages into the navigation, in the place of their folder."""
    pages = [{name: _place(name)} for name in packages()]
    replace(config.nav, f"{FOLDER}/", [f"{FOLDER}/index.md", *pages])


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Generate the pages."""
    files.append(File.generated(config, f"{FOLDER}/index.md", content=_index()))
    for name in packages():
        files.append(File.generated(config, _place(name), content=_page(name)))


def packages() -> list[str]:
    """The public packages that define ``__all__``."""
    modules = {name: getattr(moelora_ad, name) for name in moelora_ad.__all__}
    return [f"moelora_ad.{n}" for n, m in modules.items() if isinstance(m, ModuleType) and hasattr(m, "__all__")]


def _place(name: str) -> str:
    return f"{FOLDER}/{name.rpartition('.')[2]}.md"


def _index() -> str:
    names = [name for name in moelora_ad.__all__ if not isinstance(getattr(moelora_ad, name), ModuleType)]
    homes = {name: getattr(moelora_ad, name) for name in names}
    lines = ["# Python\n", "`import moelora_ad` imports nothing else; each name is imported when it is first used.\n"]
    lines += ["| Name | Page |", "|---|---|"]
    for name, value in homes.items():
        package = ".".join(value.__module__.split(".")[:2])
        package = package if package in packages() else "moelora_ad.training"
        lines.append(f"| `moelora_ad.{name}` | [`{package}`]({package.rpartition('.')[2]}.md) |")
    lines += ["", "| Package | Names |", "|---|---|"]
    for name in packages():
        listed = ", ".join(f"`{one}`" for one in _names(name))
        lines.append(f"| [`{name}`]({name.rpartition('.')[2]}.md) | {listed} |")
    return "\n".join(lines) + "\n"


def _names(package: str) -> list[str]:
    return importlib.import_module(package).__all__


def _page(package: str) -> str:
    parts = [f"# {package}\n", f"::: {package}\n    options: {{members: false, show_root_heading: false}}\n"]
    for name in _names(package):
        inherited = _inherited(getattr(importlib.import_module(package), name))
        options = f"    options: {{inherited_members: {inherited}}}\n" if inherited else ""
        parts.append(f"::: {package}.{name}\n{options}")
    return "\n".join(parts)


def _inherited(value: object) -> list[str]:
    """The documented methods that a class has from classes of this package that are on no page. Its other bases are
    named in its entry, and their methods are in theirs, or in the documentation of another package."""
    shown = [getattr(importlib.import_module(name), one) for name in packages() for one in _names(name)]
    bases = [base for base in getattr(value, "__mro__", ())[1:] if base.__module__.startswith("moelora_ad.")]
    hidden = [base for base in bases if base not in shown]
    elsewhere = {name for base in bases if base in shown for name in vars(base)}
    found = {name: None for base in hidden for name in vars(base) if getattr(getattr(base, name), "__doc__", None)}
    methods = [name for name in found if callable(getattr(value, name)) or isinstance(getattr(value, name), property)]
    return [name for name in methods if not name.startswith("_") and name not in elsewhere]

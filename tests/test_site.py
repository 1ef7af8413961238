"""The pages: the site builds without a warning and loads nothing from elsewhere; links, commands and code are right."""

import ast
import importlib
import importlib.util
import logging
import re
import shlex
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import moelora_ad
from moelora_ad.cli.main import VERBS
from moelora_ad.sweeps.sweep import read_sweep

PROJECT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(PROJECT)): path.read_text(encoding="utf-8")
    for path in (PROJECT / "README.md", PROJECT / "benchmarks/README.md", *(PROJECT / "docs").rglob("*.md"))
}
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s#]*)(?:#([^)\s]*))?\)")
SET_UP = (
    "pip install -e . && lightning fit --config experiments/quickstart.yaml",
    "pip install -e '.[test]' && pytest -n 2",
)


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """All blocks of code in some languages, with the page of each."""
    for page, text in PAGES.items():
        yield from ((page, code) for language, code in BLOCK.findall(text) if language in languages)


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as code hosts and the site make them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", PAGES[page]), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


# README.md


def test_the_readme_is_short_and_has_its_parts_in_order():
    readme = PAGES["README.md"]
    assert len(readme.split()) <= 1_500
    titles = re.findall(r"^## (.+)$", readme, re.MULTILINE)
    parts = (
        "Install",
        "Score a file",
        "Train",
        "Your own data",
        "The paper",
        "Compare",
        "Adapters",
        "Extend",
        "Doc",
        "Lic",
    )
    assert [title[: len(part)] for title, part in zip(titles, parts, strict=True)] == list(parts)
    commands = [line for language, code in BLOCK.findall(readme) if language == "sh" for line in code.splitlines()]
    assert [line for line in commands if line.startswith("pip")] == list(SET_UP)
    assert "have not been reproduced" in readme


def test_the_readmes_output_is_that_of_the_quickstarts_page():
    (shortened,) = (code for language, code in BLOCK.findall(PAGES["README.md"]) if language == "text")
    whole = {line.strip() for line in PAGES["docs/start/quickstart.md"].splitlines()}
    assert {line.strip() for line in shortened.splitlines() if line} <= whole


# All pages


def test_links_lead_to_files_and_headings_that_are_there():
    built = re.compile(
        r"docs/reference/(commands|api)/\w+\.md|docs/reference/keys\.md|.*\.ipynb"
    )  # pages built by the site's hooks
    for page, text in PAGES.items():
        for target, anchor in LINK.findall(BLOCK.sub("", text)):
            path = (PROJECT / page).parent.joinpath(target).resolve() if target else PROJECT / page
            name = str(path.relative_to(PROJECT))
            if not built.fullmatch(name):
                assert path.is_file(), f"{page}: {target}"
                assert not anchor or anchor in anchors(name), f"{page}: {target}#{anchor}"


def test_files_that_commands_name_are_there():
    for page, code in blocks("sh", "yaml", "python"):
        for name in re.findall(r"(?<![\w/])(?:experiments|examples|benchmarks|tests|docs)/[\w./-]*\w", code):
            assert (PROJECT / name).exists(), f"{page}: {name}"
    for page, text in PAGES.items():
        for name in re.findall(r"`((?:experiments|examples|benchmarks|tests|moelora_ad)/[\w./-]*\w)", text):
            assert (PROJECT / name).exists(), f"{page}: {name}"


def test_the_map_of_the_architecture_has_every_package():
    shown = re.findall(r"^moelora_ad/(\w+)/", PAGES["docs/project/architecture.md"], re.MULTILINE)
    there = {path.parent.name for path in (PROJECT / "moelora_ad").glob("*/__init__.py")} | {"packaged"}
    assert sorted(shown) == sorted(there)


def commands() -> Iterator[tuple[str, list[str]]]:
    """The words of all commands on the pages, after the program's name, with the page of each."""
    for page, code in blocks("sh"):
        for line in code.replace("\\\n", " ").splitlines():
            for part in re.split(r" && | \| |<\(", line):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words = words[1:]
                if words[:1] in (["moelora-ad"], ["lightning"]):
                    yield page, words[1:]


def test_commands_and_their_options_are_known():
    pytest.importorskip("mkdocs", reason="the parsers are taken from the site's hooks: pip install 'moelora_ad[docs]'")
    hooks = {name: hook(name) for name in ("commands", "keys")}
    keys = {action.dest for action in hooks["keys"].parser_of_fit()._actions}
    seen = set()
    for page, (name, *words) in commands():
        assert name in VERBS, f"{page}: moelora-ad {name}"
        options = [word.partition("=")[0] for word in words if re.match(r"--\w", word)]
        seen.add(name)
        if name in (*hooks["commands"].PRINTS_HELP, "inspect", "plan"):
            known = keys | {"help", "allow", "format", "seconds", "steps"}
            unknown = [one for one in options if not any(f"{one[2:]}.".startswith(f"{key}.") for key in known)]
        else:
            call = [name, words[0]] if name in ("analyze", "corpus") else [name]
            unknown = [one for one in options if one not in hooks["commands"].options_of(call)]
        assert not unknown, f"{page}: moelora-ad {name} has no {unknown}"
    assert len(seen) >= 14


def test_configurations_name_classes_and_keys_that_are_there(tmp_path):
    def classes(value: object) -> Iterator[str]:
        for name, part in value.items() if isinstance(value, dict) else ():
            yield from [part] if name == "class_path" else classes(part)

    for page, code in blocks("yaml"):
        content = yaml.safe_load(code)
        if "systems" in content:
            (tmp_path / "sweep.yaml").write_text(code, encoding="utf-8")
            read_sweep(tmp_path / "sweep.yaml")
            continue
        assert {*content} <= {"model", "data", "trainer", "slurm"}, page
        for path in classes(content):
            module, _, name = path.rpartition(".")
            if module.partition(".")[0] in ("moelora_ad", "torch", "lightning"):
                assert hasattr(importlib.import_module(module), name), f"{page}: {path}"


def test_python_imports_names_that_are_there():
    for page, code in blocks("python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("moelora_ad"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], page


def test_example_of_evaluation(capsys):
    (example,) = (code for page, code in blocks("python") if page == "docs/howto/evaluate.md")
    exec(example, {})
    assert capsys.readouterr().out == "0.5 0.5 0.75\n0.5\n"


# The site


def hook(name: str):
    """Import a module of ``docs/hooks``, which may import others there."""
    folder = str(PROJECT / "docs/hooks")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location(name, f"{folder}/{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


class Loaded(HTMLParser):
    """The resources that a browser loads for a page, and the page's ids and links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.resources, self.ids, self.links = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id"))
        if tag == "a":
            self.links.append(given.get("href") or "")
        elif tag != "link" or given.get("rel") not in ("canonical", "next", "prev"):
            self.resources += [given[name] for name in ("src", "href", "srcset", "data") if given.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built with MkDocs' strictest settings."""
    pytest.importorskip("mkdocs", reason="the site is not built: pip install 'moelora_ad[docs]'")
    pytest.importorskip("mkdocstrings", reason="the site is not built: pip install 'moelora_ad[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    told = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("mkdocs").addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        try:
            config = load_config(str(PROJECT / "mkdocs.yml"), site_dir=str(folder), strict=True)
            config.plugins.on_startup(command="build", dirty=False)
            build(config)
        finally:
            logging.getLogger("mkdocs").removeHandler(handler)
    assert told == []
    return folder


@pytest.mark.slow
def test_the_site_is_whole_and_loads_nothing_from_elsewhere(site):
    pages = {path: Loaded(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        assert [one for one in page.resources if re.match(r"(?:https?:)?//", one)] == [], path
        for target in {*page.resources, *page.links}:
            place, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target) or target.startswith("/"):
                continue
            file = (path.parent / place.partition("?")[0]).resolve() if place else path
            assert file.exists(), f"{path}: {target}"
            assert not anchor or file not in pages or anchor in pages[file].ids, f"{path}: {target}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_the_site_has_every_command_key_name_and_corpus(site):
    def ids(place: str) -> set[str]:
        return Loaded((site / place).read_text(encoding="utf-8")).ids

    for name in VERBS:
        assert (site / f"reference/commands/{name}.html").is_file(), name
    keys = (site / "reference/keys.html").read_text(encoding="utf-8")
    for key in ("model.adapter_lr", "data.num_workers", "trainer.max_epochs", "early_stopping.patience", "ckpt_path"):
        assert f"<code>{key}</code>" in keys
    packages = [name for name in moelora_ad.__all__ if hasattr(getattr(moelora_ad, name), "__path__")]
    for package in packages:
        names = getattr(getattr(moelora_ad, package), "__all__", ())
        assert not names or {f"moelora_ad.{package}.{name}" for name in names} <= ids(f"reference/api/{package}.html")
    corpora = (site / "reference/corpora.html").read_text(encoding="utf-8")
    assert corpora.count("<code>MLAAD</code>") == corpora.count("<code>WaveFake</code>") == 1
    formulas = (site / "reference/metrics.html").read_text(encoding="utf-8")
    assert "arithmatex" not in formulas
    assert formulas.count("<math") > 20

"""Links, pictures, files and commands that the documentation names are there; nothing is built or fetched."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from lightning_bsqh.cli.recipes import recipe_names
from tests.docs.pages import DOCS, PAGES, README, ROOT, TEXTS, anchors, blocks, links

_URL = re.search(r'^Source = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
assert _URL is not None
SOURCE = _URL[1]


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page if not path else (page.parent / path).resolve()
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    inside = [link for link in links(page) if "://" not in link]
    assert [link for link in inside if not _leads_somewhere(page, link)] == []


def test_links_of_the_readme_work_wherever_it_is_shown() -> None:
    found = list(links(README))
    assert len(found) > 20
    for link in found:
        place = re.fullmatch(re.escape(SOURCE) + r"/(?:blob|raw)/main/(.+)", link)
        assert place is not None, f"{link} does not work on a package index"
        assert _leads_somewhere(README, place[1]), link


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


def test_every_page_is_in_the_table_of_contents() -> None:
    trees = [block.text for block in blocks(DOCS / "index.md") if block.language == "{toctree}"]
    listed = {line for text in trees for line in text.splitlines() if line and not line.startswith(":")}
    assert listed == {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES} - {"index"}


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.parent.name == "reference")
    listed = set(re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE))
    packages = ("", ".callbacks", ".export", ".report", ".zoo", ".zoo.data")
    modules = [importlib.import_module(f"lightning_bsqh{package}") for package in packages]
    public = {f"{module.__name__}.{name}" for module in modules for name in module.__all__ if name != "__version__"}
    assert public == listed


@pytest.mark.parametrize("page", TEXTS[:-1], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_what_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for script in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (ROOT / script).is_file(), script
    own = {block.file for block in blocks(page)}
    for config in re.findall(r"--config (\S+)", text):
        name = config.strip("`,.").removeprefix("recipes/").removesuffix(".yaml")
        assert name in recipe_names() or config in own or config in {"NAME", "NAME`", "RECIPE"}, config
    for target in re.findall(r"make ([a-z-]+)\b(?=[`\s]+(?:#|runs|builds|`))", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target

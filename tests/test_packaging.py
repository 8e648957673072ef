"""The files around the package say what the package says."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

import lightning_bsqh

ROOT = Path(__file__).parents[1]


def test_citation_has_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == lightning_bsqh.__version__


def test_the_changelog_has_a_dated_section_of_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(\d\S*)\](?: - (\d{4}-\d\d-\d\d))?$", changelog, re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert sections[0] == (lightning_bsqh.__version__, str(citation["date-released"]))


def _pins(lines: list[str], pattern: str) -> dict[str, str]:
    found = [re.match(pattern, line.strip()) for line in lines]
    return {match[1]: match[2] for match in found if match}


def test_the_lowest_versions_are_those_that_are_admitted() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.findall(
        r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)', text[text.index("dependencies = [") : text.index("dev = [")]
    )
    lowest = _pins((ROOT / "requirements-lowest.txt").read_text(encoding="utf-8").splitlines(), r"([\w-]+)==([\d.]+)$")
    assert len(needed) > 10
    for name, version in needed:
        if name != "typing-extensions":
            assert Version(lowest[name]) == Version(version), name
    assert lowest["pytorch-lightning"] == lowest["lightning"]


def test_the_source_distribution_has_what_a_build_and_its_tests_need(tmp_path) -> None:
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        metadata = archive.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert metadata is not None
        head, _, description = metadata.read().decode().partition("\n\n")
    wanted = {"pyproject.toml", "LICENSE", "CHANGELOG.md", "CITATION.cff", "requirements-lowest.txt", "docs/guide.md"}
    assert wanted | {"lightning_bsqh_cli.py", "lightning_bsqh/py.typed", "tests/conftest.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "runs", "lightning_logs"))]
    # What an index shows, and asks for.
    assert "Description-Content-Type: text/markdown" in head
    assert "Requires-Python: >=3.10" in head
    assert description.startswith("# ")


def test_the_wheel_has_command_templates_and_recipes(tmp_path) -> None:
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "lightning-bsqh = lightning_bsqh_cli:main" in archive.read(entry).decode()
    recipes = {f"lightning_bsqh/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    parts = ("page.html", "tables.html", "page.js", "style.css")
    templates = {f"lightning_bsqh/report/templates/{part}" for part in parts}
    templates |= {f"lightning_bsqh/report/vendor/{part}" for part in ("plotly-basic.min.js", "LICENSE")}
    assert {"lightning_bsqh_cli.py", "lightning_bsqh/py.typed"} | recipes | templates <= names
    assert len(recipes) > 10

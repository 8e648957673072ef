"""The pages of the documentation, as their tests read them: blocks of code, headings and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDE = DOCS / "guide.md"
README = ROOT / "README.md"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
#: The pages, and the files beside them that are written in the same way.
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the heading above it, its language and its text."""

    page: Path
    heading: str
    language: str
    text: str

    @property
    def name(self) -> str:
        """The page's name and the heading."""
        return f"{self.page.stem}: {self.heading}"

    @property
    def file(self) -> str | None:
        """The file that it is, if its first line is a comment with nothing but a name."""
        match = re.match(r"# (\w+\.(?:py|yaml))\n", self.text)
        return match[1] if match else None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found, heading, language, lines = [], "", None, []
    for line in page.read_text(encoding="utf-8").splitlines():
        if language is None:
            heading = line.lstrip("# ") if line.startswith("#") else heading
            if line.startswith("```"):
                language, lines = line[3:], []
        elif line == "```":
            found.append(Block(page, heading, language, "\n".join(lines) + "\n"))
            language = None
        else:
            lines.append(line)
    assert language is None, f"a block of {page} is not closed"
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What can stand behind ``#`` in a link to a page."""
    return {_anchor(line) for line in prose(page).splitlines() if re.match(r"#{1,3} ", line)}


def _anchor(heading: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.lstrip("# ")).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def links(page: Path) -> Iterator[str]:
    """Where a page's links and pictures lead."""
    yield from _LINK.findall(prose(page))

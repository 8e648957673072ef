"""Writes a page without ever costing anybody a file."""

from __future__ import annotations

import os
from pathlib import Path

#: Stands near the top of every page that this package has written, and of no other.
MARK = '<meta name="generator" content="lightning-bsqh">'
_HEAD = 2_000


def check_output(path: Path) -> None:
    """Refuses to write over anything but an earlier report.

    Raises:
        ValueError: If ``path`` is a folder, a symbolic link, or a file that is no report of this package.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link, and what it leads to is not to be replaced: name another file.")
    if path.is_dir():
        raise ValueError(
            f"output must be a file, got the folder {path}: name a file in it, such as {path}/report.html."
        )
    if path.exists() and not (path.is_file() and _is_report(path)):
        raise ValueError(f"{path} exists and is no report of lightning-bsqh, so it stays as it is: name another file.")


def write_page(path: Path, page: str) -> None:
    """Writes a page, folders above it made if needed; an earlier one is replaced at once or not at all.

    Raises:
        ValueError: If there is something else under this name.
        OSError: If it cannot be written.
    """
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(page)
        # Again: what has come in the meantime is not ours either.
        check_output(path)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(_HEAD)

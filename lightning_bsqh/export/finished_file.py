"""A file that appears under its name only once it is complete and has been checked."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def finished_file(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Gives the name of a temporary file beside ``path``, and renames it at the end.

    If the block raises, the temporary file is removed and what lies at ``path`` stays as it was.

    Args:
        path: The final name.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        FileExistsError: If the file exists and ``overwrite`` is false.
        IsADirectoryError: If ``path`` is a folder.
        FileNotFoundError: If the folder of the file does not exist.
    """
    path = Path(path)
    check_free(path, overwrite)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.part{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        # safetensors makes files that others of the group cannot read, whatever the umask allows.
        temporary.chmod(mode)
        check_free(path, overwrite)
        with temporary.open("rb+") as file:
            # Else the name might be there after a power cut, and the content not.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_free(path: Path, overwrite: bool) -> None:
    """Raises if a file cannot be written at ``path``; see :func:`finished_file`."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another name, or allow overwriting it (overwrite=True).")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} does not exist: make it first.")

"""Names of tensors that are safe to store: nothing that another program could take for a path."""

from __future__ import annotations

from typing import Any


def check_name(name: Any) -> None:
    """Raises unless ``name`` is a plain name such as ``network.fc1.weight``.

    Raises:
        ValueError: If it is no text, empty, or has a slash, a backslash, two dots in a row or a control character.
    """
    plain = isinstance(name, str) and bool(name) and name.isprintable() and len(name) <= 1000
    if not plain or any(part in name for part in ("/", "\\", "..")):
        raise ValueError(
            f"{str(name)[:80]!r} is no name for a tensor: slashes, '..' and control characters are refused"
        )

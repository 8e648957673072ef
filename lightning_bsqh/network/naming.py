"""Where in a module something is, for a message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from lightning_bsqh.network.things import slots_of

#: How far down is looked.
_DEPTH = 5


def name_of(module: nn.Module, target: Any) -> str:
    """What leads from a module to an object, such as ``"net.0.history['train']"``."""
    for name, part in module.named_modules():
        tensors = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        for key, value in (*tensors, *vars(part).items(), *vars(type(part)).items()):
            path = _path(value, target, _DEPTH)
            if path is not None and not (key.startswith("_") and key in vars(nn.Module())):
                return f"{name}.{key}{path}" if name else f"{key}{path}"
    return f"something that {type(module).__name__} holds, a {type(target).__name__}"


def _path(value: Any, target: Any, depth: int) -> str | None:
    if value is target or getattr(value, "__dict__", None) is target:
        return ""
    if depth == 0 or isinstance(value, nn.Module):
        return None
    for step, member in _members(value):
        path = _path(member, target, depth - 1)
        if path is not None:
            return step + path
    return None


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", member) for key, member in list(value.items()))
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{i}]", member) for i, member in enumerate(value[:1000]))
    elif not isinstance(value, type):
        yield from ((f".{key}", member) for key, member in list(getattr(value, "__dict__", {}).items()))
        yield from ((f".{key}", getattr(value, key)) for key in slots_of(type(value)) if hasattr(value, key))

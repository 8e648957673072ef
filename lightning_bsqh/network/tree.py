"""Tensors in nests of tuples, lists, dicts and dataclasses: what layers take and return, and what batches are."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor


def is_nest(value: Any) -> bool:
    """Whether ``value`` is a tensor or tuples, lists, dicts and dataclasses of them with at least one tensor."""
    found = leaves(value)
    return all(isinstance(leaf, (Tensor, int, float, str, type(None))) for leaf in found) and any(
        isinstance(leaf, Tensor) for leaf in found
    )


def floating(value: Any) -> list[Tensor]:
    """The floating tensors of a nest, in their order."""
    return [leaf for leaf in leaves(value) if is_floating(leaf)]


def detached(value: Any) -> Any:
    """The same nest with copies of its tensors, cut off from the graph."""
    return mapped(value, lambda t: t.detach().clone())


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest with ``change`` applied to every tensor; what is no container of a known kind stays as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    if isinstance(value, MutableMapping):
        same = copy.copy(value)
        for key, item in value.items():
            same[key] = mapped(item, change)
        return same
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: mapped(getattr(value, f.name), change) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **fields)
    return value


def leaves(value: Any) -> list[Any]:
    """What stands in a nest, in order: all that is no container."""
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in leaves(item)]
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [leaf for f in dataclasses.fields(value) for leaf in leaves(getattr(value, f.name))]
    return [value]


def versions(value: Any) -> list[int]:
    """How often each tensor in a nest has been written into.

    The counter is what autograd itself checks saved tensors by; it has an underscore but no public twin.
    """
    return [0 if t.is_inference() else t._version for t in leaves(value) if isinstance(t, Tensor)]


def is_floating(value: Any) -> bool:
    """Whether it is a tensor of real numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def describe(value: Any) -> str:
    """A nest's type, and the types of what is no tensor in it, for a message."""
    kinds = {type(leaf).__name__ for leaf in leaves(value) if not isinstance(leaf, Tensor)}
    return f"{type(value).__name__} with {', '.join(sorted(kinds))}" if kinds else type(value).__name__

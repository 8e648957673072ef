"""Nests of tuples, lists, mappings and dataclasses: what layers take and return, and what batches are.

One walker for all of them: :func:`members` takes a container apart, :func:`with_members` makes one of the same kind.
Pytree libraries know the exact types of containers only; here a subclass counts too, such as the outputs of Hugging
Face models.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor


def members(value: Any) -> list[Any] | None:
    """What stands in a container, in order; None if ``value`` is none."""
    if isinstance(value, (tuple, list)):
        return list(value)
    if isinstance(value, Mapping):
        return list(value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, f.name) for f in dataclasses.fields(value)]
    return None


def with_members(value: Any, items: list[Any]) -> Any:
    """A container of the same kind with other members."""
    if isinstance(value, tuple):
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is list:
        return items
    if isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        return type(value)(dict(zip(value, items, strict=True)))  # type: ignore[call-arg]
    twin = copy.copy(value)
    if isinstance(value, list):
        twin[:] = items
    elif isinstance(value, MutableMapping):
        for key, item in zip(value, items, strict=True):
            twin[key] = item
    else:
        for field, item in zip(dataclasses.fields(value), items, strict=True):
            # As they are even if the class is frozen or computes them.
            object.__setattr__(twin, field.name, item)
    return twin


def mapped(value: Any, change: Callable[[Any], Any], kinds: type | tuple[type, ...] = Tensor) -> Any:
    """The same nest with ``change`` applied to everything of these kinds; what is no container stays as it is."""
    if isinstance(value, kinds):
        return change(value)
    if isinstance(value, Tensor) or (items := members(value)) is None:
        return value
    return with_members(value, [mapped(item, change, kinds) for item in items])


def leaves(value: Any) -> Iterator[Any]:
    """What stands in a nest, in order: all that is no container."""
    items = None if isinstance(value, Tensor) else members(value)
    if items is None:
        yield value
    else:
        for item in items:
            yield from leaves(item)


def detached(value: Any) -> Any:
    """The same nest without autograd graphs."""
    return mapped(value, lambda t: t.detach())


def copied(value: Any) -> Any:
    """The same nest with copies of its tensors, cut off from the graph."""
    return mapped(value, lambda t: t.detach().clone())


def same(first: Any, second: Any) -> bool:
    """Whether two nests of tensors and plain values are equal, to the bit; objects of other kinds only if identical."""
    if first is second:
        return True
    if isinstance(first, Tensor):
        alike = isinstance(second, Tensor) and first.dtype == second.dtype and first.device == second.device
        return alike and torch.equal(first, second)
    if type(first) is not type(second):
        return False
    items = members(first)
    if items is not None:
        if isinstance(first, Mapping) and first.keys() != second.keys():
            return False
        others = [second[key] for key in first] if isinstance(first, Mapping) else members(second) or []
        return len(items) == len(others) and all(map(same, items, others))
    return isinstance(first, (int, float, str, bytes, set, torch.device)) and bool(first == second)


def is_nest(value: Any) -> bool:
    """Whether ``value`` is a tensor or containers of tensors and plain values with at least one tensor."""
    found = list(leaves(value))
    return all(isinstance(leaf, (Tensor, int, float, str, type(None))) for leaf in found) and any(
        isinstance(leaf, Tensor) for leaf in found
    )


def floating(value: Any) -> list[Tensor]:
    """The floating tensors of a nest, in their order."""
    return [leaf for leaf in leaves(value) if is_floating(leaf)]


def first_dimension(value: Any) -> int | None:
    """The first dimension of the first tensor in a nest that has one; None if there is none."""
    return next((leaf.shape[0] for leaf in leaves(value) if isinstance(leaf, Tensor) and leaf.dim()), None)


def versions(value: Any) -> list[int]:
    """How often each tensor in a nest has been written into, see :func:`version`."""
    return [version(leaf) for leaf in leaves(value) if isinstance(leaf, Tensor)]


def version(tensor: Tensor) -> int:
    """How often a tensor has been written into, 0 if nobody counts.

    The counter is what autograd itself checks saved tensors by; it has an underscore but no public twin.
    """
    return 0 if tensor.is_inference() else tensor._version


def is_floating(value: Any) -> bool:
    """Whether it is a tensor of real numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def describe(value: Any) -> str:
    """A nest's type, and the types of what is no tensor in it, for a message."""
    kinds = {type(leaf).__name__ for leaf in leaves(value) if not isinstance(leaf, Tensor)}
    return f"{type(value).__name__} with {', '.join(sorted(kinds))}" if kinds else type(value).__name__

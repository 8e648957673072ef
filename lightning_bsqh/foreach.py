"""The same arithmetic on many tensors: a few calls however many they are, and no look at a value from the host.

``torch._foreach_*`` are private by their names, but what ``torch.optim`` is built on. All uses of them are here, and
``tests/test_foreach.py`` fails loudly if one of them changes. They take no empty lists; the functions here do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

#: For each of some tensors one number, or one tensor that broadcasts to it.
Values = Sequence[Any]


def joins(tensors: Sequence[Tensor]) -> bool:
    """Whether to copy the tensors into a long one where no call takes lists.

    On an accelerator a call costs more than the copy, on the CPU it costs nothing beside the work. Tensors of
    different kinds or devices cannot be joined.
    """
    kinds = {(t.device, t.dtype) for t in tensors}
    return len(kinds) == 1 and len(tensors) > 1 and tensors[0].device.type != "cpu"


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements in their order, shape ``[n]``; at least one tensor."""
    return torch.cat([t.flatten() for t in tensors])


def unflat(values: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The reverse of :func:`flat`: views of ``values`` in the shapes of ``like``."""
    parts = values.split([t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]


def joined(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors themselves, or one long copy of them where :func:`joins` says so; for sums over all elements."""
    return [flat(tensors)] if joins(tensors) else tensors


def by_kind(tensors: Sequence[Tensor], values: Values) -> Iterator[tuple[list[Tensor], list[Any]]]:
    """Divides tensors and their values into lists in which all values are tensors, or all the same number.

    Where they are not joined also into pieces that fit a CPU's cache, where further passes over them cost little.
    """
    most = math.inf if joins(tensors) else _PIECE
    kinds: dict[float | None, tuple[list[Tensor], list[Any]]] = {}
    sizes: dict[float | None, int] = {}
    for t, value in zip(tensors, values, strict=True):
        kind = None if isinstance(value, Tensor) else value
        sizes[kind] = sizes.get(kind, 0) + t.numel()
        if kind in kinds and sizes[kind] > most:
            yield kinds.pop(kind)
            sizes[kind] = t.numel()
        own, its = kinds.setdefault(kind, ([], []))
        own.append(t)
        its.append(value)
    yield from kinds.values()


#: Elements of one piece.
_PIECE = 1 << 20


def copy_(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Puts each of the values into its tensor."""
    if tensors:
        torch._foreach_copy_(list(tensors), list(values))


def squares(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The square of every element."""
    return list(torch._foreach_mul(list(tensors), list(tensors))) if tensors else []


def times(values: Values, factor: float) -> list[Any]:
    """Every value times one number."""
    if not (values and isinstance(values[0], Tensor)):
        return [v * factor for v in values]
    return list(torch._foreach_mul(list(values), factor))


def plus(tensors: Sequence[Tensor], numbers: Sequence[float]) -> list[Tensor]:
    """Every tensor plus its own number of the host."""
    return list(torch._foreach_add(list(tensors), list(numbers))) if tensors else []


def multiply_(tensors: Sequence[Tensor], values: Values) -> None:
    """Every tensor times its own value, in place."""
    if tensors:
        torch._foreach_mul_(list(tensors), list(values))


def multiply_each_(tensors: Sequence[Tensor], values: Values) -> None:
    """The same, where numbers and tensors may be mixed."""
    for own, its in by_kind(tensors, values):
        multiply_(own, its)


def costs_of_zero(tensors: Sequence[Tensor], metric: Values, epsilon: float) -> list[Tensor]:
    """εDz² of every element, with D as numbers or as tensors."""
    costs = squares(tensors)
    multiply_(costs, times(metric, epsilon))
    return costs


def shares(values: Values, constant: float) -> list[Any]:
    """v/(v + constant) for every value v."""
    if not (values and isinstance(values[0], Tensor)):
        return [v / (v + constant) for v in values]
    return list(torch._foreach_div(list(values), torch._foreach_add(list(values), constant)))


def quotients(numerator: float, values: Values) -> list[Any]:
    """numerator/v for every value v."""
    if not (values and isinstance(values[0], Tensor)):
        return [numerator / v for v in values]
    inverse = torch._foreach_reciprocal(list(values))
    torch._foreach_mul_(inverse, numerator)
    return list(inverse)


def soften_(tensors: Sequence[Tensor], thresholds: Values) -> None:
    """Takes up to its threshold from the size of every element: what is no larger becomes exactly zero."""
    if not tensors:
        return
    inside = torch._foreach_clamp_max(list(tensors), list(thresholds))
    torch._foreach_clamp_min_(inside, times(thresholds, -1.0))
    torch._foreach_sub_(list(tensors), inside)


def clamp_(tensors: Sequence[Tensor], low: float, high: float) -> None:
    """Clips every element to [low, high]."""
    if joins(tensors):
        torch._foreach_clamp_min_(list(tensors), low)
        torch._foreach_clamp_max_(list(tensors), high)
        return
    for t in tensors:
        t.clamp_(low, high)


def at_most(tensors: Sequence[Tensor], bound: float) -> list[Tensor]:
    """Which elements are no larger than a bound, as boolean tensors."""
    if joins(tensors):
        return unflat(flat(tensors) <= bound, tensors)
    return [t <= bound for t in tensors]


def drop_(tensors: Sequence[Tensor], dropped: Sequence[Tensor]) -> None:
    """Sets elements to zero.

    Args:
        tensors: Overwritten.
        dropped: Which elements, boolean tensors of the same shapes.
    """
    if joins(tensors):
        copy_(tensors, unflat(flat(tensors).masked_fill_(flat(dropped), 0.0), tensors))
        return
    for t, mask in zip(tensors, dropped, strict=True):
        t.masked_fill_(mask, 0.0)


def elementwise_(change_: Callable[[Tensor, Any], object], tensors: Sequence[Tensor], values: Values) -> None:
    """Applies what changes a tensor in place, by a value that is a number or of its shape, to each; or to all joined.

    Args:
        change_: Treats every element alike, whichever tensor it belongs to.
        tensors: Overwritten.
        values: One for each of them.
    """
    if not joins(tensors):
        for t, value in zip(tensors, values, strict=True):
            change_(t, value)
        return
    for own, its in by_kind(tensors, values):
        all_own = flat(own)
        change_(all_own, its[0] if not isinstance(its[0], Tensor) else _spread(own, its))
        copy_(own, unflat(all_own, own))


def _spread(tensors: Sequence[Tensor], values: Values) -> Tensor:
    return flat([torch.as_tensor(v).expand_as(t) for t, v in zip(tensors, values, strict=True)])


def scalars(parts: Sequence[Tensor]) -> Tensor:
    """Scalars in one vector, shape ``[number of parts]``, in double precision where the device has it."""
    if not parts:
        return torch.zeros(0, dtype=torch.float64)
    stacked = torch.stack([p.to(parts[0].device) for p in parts])
    return stacked.to(torch.float32 if stacked.device.type == "mps" else torch.float64)


def added(values: Tensor) -> Tensor:
    """Σ of a vector from :func:`scalars`; on the CPU from first to last, as Python's ``sum``."""
    if values.device.type == "cpu" and values.numel() > 0:
        return values.cumsum(0)[-1]
    return values.sum()


def scaled(values: Tensor, factors: Sequence[float]) -> Tensor:
    """A vector from :func:`scalars` times numbers of the host, which need not be copied first."""
    return torch.stack(torch._foreach_mul(values.unbind(), list(factors))) if factors else values


def at_least(values: Tensor, bounds: Sequence[float]) -> Tensor:
    """A vector from :func:`scalars` with what is below its bound raised to it."""
    return torch.stack(torch._foreach_clamp_min(values.unbind(), list(bounds))) if bounds else values


def norms(tensors: Sequence[Tensor], order: float) -> Tensor:
    """The norm of each tensor, shape ``[number of tensors]``; of order 0 the number of elements that are not zero."""
    return torch.stack(torch._foreach_norm(list(tensors), order)) if tensors else torch.zeros(0)


def no_larger(values: Tensor, bounds: Sequence[float]) -> Tensor:
    """Whether each of a vector from :func:`scalars` is at most its bound, a boolean scalar."""
    if not bounds:
        return torch.ones((), dtype=torch.bool)
    return (torch.stack(torch._foreach_sub(values.unbind(), list(bounds))) <= 0.0).all()


def both(first: Tensor | bool, second: Tensor | bool) -> Tensor | bool:
    """Whether both hold, without a look at a tensor."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first & second.to(first.device)
    # Of which one is a bool: false decides, true leaves it to the other.
    known, other = (second, first) if isinstance(first, Tensor) else (first, second)
    return other if known else False

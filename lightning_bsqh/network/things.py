"""Objects with contents, how to read these and how to put them back (method §6)."""

from __future__ import annotations

import array
import io
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import CellType
from typing import Any

import torch

#: Stands for an attribute that an object with slots does not have, and for what is in an empty cell.
MISSING = object()


class Thing:
    """An object that holds others: a container, or whatever has attributes.

    Attributes:
        target: The object itself.
        values: Gives what it holds, in order.
        names: Gives the keys or the names of the attributes, in the same order; nothing where there are none.
        is_named: Whether it has names.
        size: Gives the number of values.
        put: Puts names and values back.
    """

    __slots__ = ("is_named", "names", "put", "size", "target", "values")

    def __init__(
        self,
        target: Any,
        values: Callable[[], Iterable[Any]],
        put: partial[None],
        names: Callable[[], Iterable[Any]] | None = None,
        size: Callable[[], int] | None = None,
    ) -> None:
        self.target = target
        self.values = values
        self.is_named = names is not None
        self.names = names or tuple
        self.size = size or target.__len__
        self.put = put

    @property
    def key(self) -> tuple[int, Any]:
        """Tells it from all others; an object may have both entries and attributes."""
        return id(self.target), self.put.func


def thing_of_dict(target: dict[Any, Any]) -> Thing:
    """For dicts of all kinds; an OrderedDict has an order of its own, others may override what is used here."""
    kind = OrderedDict if isinstance(target, OrderedDict) else dict
    own = (
        (target.values, target.keys)
        if type(target) is dict
        else (partial(kind.values, target), partial(kind.keys, target))
    )
    return Thing(target, own[0], partial(_put_dict, target, kind), own[1], partial(dict.__len__, target))


def thing_of_class(target: type) -> Thing:
    """For the attributes of a class."""
    space = vars(target)
    return Thing(target, space.values, partial(_put_class, target), space.keys, space.__len__)


def thing_of_list(target: list[Any]) -> Thing:
    """For lists of all kinds."""
    return Thing(target, partial(list.__iter__, target), partial(_put_list, target), size=partial(list.__len__, target))


def thing_of_deque(target: deque[Any]) -> Thing:
    """For deques; their length stays limited as it is."""
    return Thing(target, partial(deque.__iter__, target), partial(_put_deque, target))


def thing_of_set(target: set[Any]) -> Thing:
    """For sets."""
    return Thing(target, partial(set.__iter__, target), partial(_put_set, target), size=partial(set.__len__, target))


def thing_of_slots(target: Any, slots: Sequence[str]) -> Thing:
    """For attributes in slots."""
    return Thing(
        target,
        lambda: [getattr(target, name, MISSING) for name in slots],
        partial(_put_slots, target),
        lambda: slots,
        lambda: len(slots),
    )


def thing_of_cells(target: Any, cells: Sequence[CellType]) -> Thing:
    """For the variables that a function has from around it."""

    def values() -> list[Any]:
        return [_in_cell(cell) for cell in cells]

    return Thing(target, values, partial(_put_cells, cells), size=lambda: len(cells))


def slots_of(kind: type) -> list[str]:
    """The names of all slots of a class."""
    names: list[str] = []
    for base in kind.__mro__:
        own = vars(base).get("__slots__", ())
        for name in (own,) if isinstance(own, str) else own:
            if name not in ("__dict__", "__weakref__"):
                hidden = name.startswith("__") and not name.endswith("__")
                names.append(f"_{base.__name__.lstrip('_')}{name}" if hidden else name)
    return names


def _put_dict(target: Any, kind: Any, names: Sequence[Any], values: Sequence[Any]) -> None:
    if list(kind.keys(target)) == list(names):
        # Only what differs: compiled code watches the dicts of modules.
        for name, old, new in zip(names, list(kind.values(target)), values, strict=True):
            if old is not new:
                kind.__setitem__(target, name, new)
        return
    kind.clear(target)
    for name, value in zip(names, values, strict=True):
        kind.__setitem__(target, name, value)


def _put_class(target: type, names: Sequence[str], values: Sequence[Any]) -> None:
    for name in vars(target).keys() - set(names):
        delattr(target, name)
    for name, value in zip(names, values, strict=True):
        if vars(target).get(name, MISSING) is not value:
            setattr(target, name, value)


def _put_list(target: list[Any], names: Sequence[Any], values: Sequence[Any]) -> None:
    list.__setitem__(target, slice(None), values)


def _put_deque(target: deque[Any], names: Sequence[Any], values: Sequence[Any]) -> None:
    deque.clear(target)
    deque.extend(target, values)


def _put_set(target: set[Any], names: Sequence[Any], values: Sequence[Any]) -> None:
    set.clear(target)
    set.update(target, values)


def _put_slots(target: Any, names: Sequence[str], values: Sequence[Any]) -> None:
    for name, value in zip(names, values, strict=True):
        if getattr(target, name, MISSING) is value:
            continue
        # Past a __setattr__ of the class's own, which a frozen dataclass has.
        if value is MISSING:
            object.__delattr__(target, name)
        else:
            object.__setattr__(target, name, value)


def _in_cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def _put_cells(cells: Sequence[CellType], names: Sequence[Any], values: Sequence[Any]) -> None:
    for cell, value in zip(cells, values, strict=True):
        if _in_cell(cell) is value:
            continue
        if value is MISSING:
            del cell.cell_contents
        else:
            cell.cell_contents = value


# ---------------------------------------------------------------------- what is a value of its own


def is_generator(value: object) -> bool:
    """Whether it is a generator of random numbers."""
    numpy = sys.modules.get("numpy")
    kinds: tuple[type, ...] = (torch.Generator, random.Random)
    if numpy is not None:
        kinds += (numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator)
    return isinstance(value, kinds)


def is_array(value: object) -> bool:
    """Whether it is a NumPy array."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def value_of(target: Any) -> Any:
    """A copy of what is in a bytearray, an array, a file in memory or a generator of random numbers."""
    if isinstance(target, (bytearray, array.array)):
        return bytes(target)
    if isinstance(target, (io.StringIO, io.BytesIO)):
        return (target.getvalue(), target.tell()) if not target.closed else None
    if isinstance(target, torch.Generator):
        return target.get_state()
    if isinstance(target, random.Random):
        return target.getstate()
    if is_array(target):
        return target.copy()
    # NumPy's own three kinds.
    if hasattr(target, "get_state"):
        return target.get_state(legacy=False)
    return getattr(target, "bit_generator", target).state


def put_value(target: Any, value: Any) -> None:
    """Puts back what :func:`value_of` gave."""
    if isinstance(target, bytearray):
        target[:] = value
    elif isinstance(target, array.array):
        target[:] = array.array(target.typecode, value)
    elif isinstance(target, (io.StringIO, io.BytesIO)):
        _put_file(target, value)
    elif isinstance(target, random.Random):
        target.setstate(value)
    elif is_array(target):
        _put_array(target, value)
    elif hasattr(target, "set_state"):
        target.set_state(value)
    else:
        getattr(target, "bit_generator", target).state = value


def same_value(first: Any, second: Any) -> bool:
    """Whether two such copies are equal; in doubt no."""
    if is_array(first):
        alike = first.shape == second.shape and first.dtype == second.dtype
        return alike and not first.dtype.hasobject and first.tobytes() == second.tobytes()
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_value(value, second[key]) for key, value in first.items())
    return type(first) is type(second) and bool(first == second)


def _put_array(target: Any, value: Any) -> None:
    if not target.flags.writeable:
        return
    if target.shape != value.shape:
        target.resize(value.shape, refcheck=False)
    target[...] = value


def _put_file(target: Any, value: tuple[Any, int] | None) -> None:
    if target.closed or value is None:
        return
    target.seek(0)
    target.truncate()
    target.write(value[0])
    target.seek(value[1])

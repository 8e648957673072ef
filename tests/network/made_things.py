"""Nests of everything that somebody may keep something in, made at random, changed at random, and pictured."""

from __future__ import annotations

import array
import collections
import dataclasses
import io
import random
import types
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor


class Plain:
    """Has a dict of attributes."""

    def __init__(self, value: Any) -> None:
        self.value, self.count = value, 0


class Slots:
    """Has none."""

    __slots__ = ("count", "value")

    def __init__(self, value: Any) -> None:
        self.value, self.count = value, 0


class Half(Slots):
    """Has both."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.more = [value]


@dataclasses.dataclass
class Data:
    """A dataclass."""

    value: Any
    count: int = 0


class OwnDict(dict[str, Any]):
    """A dict that has attributes, and answers differently."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.read = 0

    def __getitem__(self, key: str) -> Any:
        self.read += 1
        return super().__getitem__(key)


class OwnList(list[Any]):
    """A list that is none of the plain ones."""


Pair = collections.namedtuple("Pair", ["first", "second"])

leaves = st.sampled_from(
    [
        lambda: 1,
        lambda: "text",
        lambda: None,
        lambda: torch.zeros(3),
        lambda: torch.arange(4.0).view(2, 2).t(),
        lambda: torch.tensor(2),
        lambda: torch.zeros(5000),
        lambda: np.zeros(3),
        lambda: np.zeros((2, 2), dtype=np.int8)[:, ::-1],
        lambda: bytearray(b"ab"),
        lambda: array.array("d", [1.0, 2.0]),
        lambda: io.StringIO("text"),
        lambda: random.Random(1),
        lambda: np.random.default_rng(1),
        lambda: torch.Generator().manual_seed(1),
    ]
).map(lambda make: make())


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, max_size=3)
    named = st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    return st.one_of(
        some,
        some.map(OwnList),
        some.map(tuple),
        some.map(lambda items: collections.deque(items, maxlen=4)),
        some.map(lambda items: set(range(len(items)))),
        some.map(collections.UserList),
        named,
        named.map(collections.OrderedDict),
        named.map(lambda items: OwnDict(**items)),
        named.map(lambda items: collections.defaultdict(list, items)),
        named.map(collections.UserDict),
        named.map(lambda items: collections.Counter(list(items))),
        named.map(lambda items: types.SimpleNamespace(**items)),
        st.builds(Pair, inner, inner),
        *(st.builds(kind, inner) for kind in (Plain, Slots, Half, Data)),
    )


#: A nest of containers, objects and leaves.
nests = st.recursive(leaves, _containers, max_leaves=8)


def picture(value: Any) -> Any:
    """Everything in a nest, as plain values that can be compared."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return kind, value.dtype, tuple(value.shape), value.tolist()
    if isinstance(value, np.ndarray):
        return kind, value.dtype.name, value.tolist()
    if isinstance(value, (torch.Generator,)):
        return kind, value.get_state().tolist()
    if isinstance(value, random.Random):
        return kind, value.getstate()
    if isinstance(value, np.random.Generator):
        return kind, repr(value.bit_generator.state)
    if isinstance(value, io.StringIO):
        return kind, value.getvalue(), value.tell()
    if isinstance(value, set):
        return kind, sorted(value)
    if isinstance(value, (list, tuple, collections.deque, array.array, bytearray)):
        return kind, [picture(item) for item in value]
    if isinstance(value, dict):
        items = [(key, picture(item)) for key, item in dict.items(value)]
        if isinstance(value, collections.OrderedDict):
            items = [(key, picture(value[key])) for key in value]
        return kind, items, picture(vars(value)) if hasattr(value, "__dict__") else None
    names = [*getattr(value, "__dict__", {}), *(n for n in ("count", "value") if hasattr(value, n))]
    if names and not isinstance(value, type):
        return kind, [(name, picture(getattr(value, name))) for name in dict.fromkeys(names)]
    return kind, value


def change(value: Any, source: random.Random) -> Any:
    """Changes everything in a nest that can be, now this way and now that; gives what may stand in its place."""
    if isinstance(value, Tensor):
        _change_tensor(value, source)
    elif isinstance(value, np.ndarray):
        value += 1
    elif isinstance(value, torch.Generator):
        torch.rand(1, generator=value)
    elif isinstance(value, (random.Random, np.random.Generator)):
        value.random()
    elif isinstance(value, io.StringIO):
        value.write("more")
    elif isinstance(value, (bytearray, array.array)):
        value.append(1)
    elif isinstance(value, (list, collections.deque, collections.UserList)):
        _change_row(value, source)
    elif isinstance(value, set):
        value.add(len(value)) if source.random() < 0.7 else value.clear()
    elif isinstance(value, tuple):
        for item in value:
            change(item, source)
    elif isinstance(value, (dict, collections.UserDict)):
        _change_table(value, source)
    elif hasattr(value, "value"):
        value.value, value.count = change(value.value, source), value.count + 1
    elif isinstance(value, types.SimpleNamespace):
        value.new = 1
    return source.choice([value, [value], 3]) if source.random() < 0.3 else value


def _change_tensor(value: Tensor, source: random.Random) -> None:
    way = source.randrange(3)
    if way == 0:
        value += 1
    elif way == 1:
        value.data.add_(1)
    else:
        value.data = value.data + 1


def _change_row(value: Any, source: random.Random) -> None:
    for i, item in enumerate(list(value)):
        value[i] = change(item, source)
    way = source.randrange(3)
    if way == 0:
        value.append([1])
    elif way == 1 and value:
        value.pop()
    else:
        value.reverse()


def _change_table(value: Any, source: random.Random) -> None:
    for key in list(value):
        item = value[key]
        value[key] = item + 1 if isinstance(item, int) else change(item, source)
    way = source.randrange(3)
    if way == 0:
        value["new"] = 1
    elif way == 1 and value:
        value.pop(next(iter(value)))
    elif isinstance(value, collections.OrderedDict) and value:
        value.move_to_end(next(iter(value)))

"""Whether what two times have in common is all that there is (method §5)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_bsqh.network.section import SectionState
from lightning_bsqh.network.tensor_copies import equal
from lightning_bsqh.network.things import same_value
from lightning_bsqh.network.tree import same


def alike(first: SectionState, second: SectionState) -> bool:
    """Whether two states are the same, to the bit; in doubt, for instance about objects of unknown kinds, no."""
    if first.contents.is_as(second.contents):
        # The same objects in the same places: only what is in tensors and arrays is left.
        pairs = list(zip(first.items(), second.items(), strict=False))
        return len(pairs) == sum(1 for _ in second.items()) and all(a is b and _equal(v, w) for (a, v), (b, w) in pairs)
    return _Comparison(first, second).are_alike()


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return equal(first, second)
    return same_value(first, second)


class _Comparison:
    """Goes through what two times hold, side by side."""

    def __init__(self, first: SectionState, second: SectionState) -> None:
        self._states = (first, second)
        self._known: set[tuple[int, int]] = set()
        self._contents: list[dict[int, list[tuple[Any, ...]]]] = [{}, {}]
        self._copies: list[dict[int, Any]] = [{}, {}]
        for i, state in enumerate(self._states):
            for thing, content in zip(state.contents.things, state.contents.each(), strict=True):
                self._contents[i].setdefault(id(thing.target), []).append(content)
            self._copies[i].update((id(target), value) for target, value in state.items())

    def are_alike(self) -> bool:
        roots = [state.contents.things for state in self._states]
        targets = [{id(thing.target): thing.target for thing in root} for root in roots]
        # Whatever hangs on what only one of them knows is reached from what both know.
        common = [t for i, t in targets[0].items() if i in targets[1]]
        return bool(common) and all(self._same(t, t) for t in common)

    def _same(self, first: Any, second: Any) -> bool:
        pair = (id(first), id(second))
        if pair in self._known:
            return True
        self._known.add(pair)
        mine, others = self._contents[0].get(pair[0]), self._contents[1].get(pair[1])
        if mine is not None and others is not None:
            return (
                type(first) is type(second) and len(mine) == len(others) and all(map(self._same_content, mine, others))
            )
        copies = self._copies[0].get(pair[0]), self._copies[1].get(pair[1])
        if copies[0] is not None and copies[1] is not None:
            return type(first) is type(second) and _equal(*copies)
        if isinstance(first, tuple) and type(first) is type(second):
            return len(first) == len(second) and all(map(self._same, first, second))
        return self._same_objects(first, second)

    def _same_objects(self, first: Any, second: Any) -> bool:
        mine, others = self._attributes(0, first), self._attributes(1, second)
        if first is not second and mine is not None and others is not None and type(first) is type(second):
            # Two objects of one class, known by their attributes.
            return all(map(self._same_content, mine, others))
        return same(first, second)

    def _attributes(self, side: int, thing: Any) -> list[tuple[Any, ...]] | None:
        return self._contents[side].get(id(getattr(thing, "__dict__", None)))

    def _same_content(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
        (names, values), (other_names, other_values) = first, second
        if len(values) != len(other_values):
            return False
        return names == other_names and all(map(self._same, values, other_values))

"""What is in many things at one time, read and compared in one go (method §6)."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, compress, count
from typing import Any

from lightning_bsqh.network.reach import ATOMS
from lightning_bsqh.network.things import Thing

#: Names and values of one thing.
_Entries = tuple[list[Any], list[Any]]


class Contents:
    """What is in some things now: names and values of all, one after the other.

    Every trial reads this several times for every module of the network, so that it is kept quick: long lists that are
    compared by identity, without a function of ours for each entry.

    Args:
        things: What to read. The same list as long as the things are the same.
    """

    __slots__ = ("_names", "_sizes", "_values", "things")

    def __init__(self, things: Sequence[Thing]) -> None:
        self.things = things
        self._sizes = [thing.size() for thing in things]
        self._names = list(chain.from_iterable([thing.names() for thing in things]))
        self._values = list(chain.from_iterable([thing.values() for thing in things]))

    def is_as(self, other: Contents) -> bool:
        """Whether the very same objects were in the same things, in the same order."""
        return self is other or (
            self.things is other.things
            and self._sizes == other._sizes
            and all(map(operator.is_, self._values, other._values))
            and _same_names(self._names, other._names)
        )

    def restore(self, now: Contents | None = None) -> None:
        """Puts back what has changed.

        Args:
            now: What is in the things at the moment, if that is known.
        """
        if now is None or now.things is not self.things:
            now = Contents(self.things)
        if self.is_as(now):
            return
        for thing, before, _ in self._differing(now):
            thing.put(*before)

    def each(self) -> Iterator[_Entries]:
        """Names and values of one thing after the other; no names where there are none."""
        bounds = self._bounds()
        return (self._entries(i, bounds) for i in range(len(self.things)))

    def _differing(self, other: Contents) -> Iterator[tuple[Thing, _Entries, _Entries]]:
        """The things that hold something else, with what they hold here and there."""
        mine, others = self._bounds(), other._bounds()
        for i in self._suspects(other):
            before, after = self._entries(i, mine), other._entries(i, others)
            if not _identical(before, after):
                yield self.things[i], before, after

    def _suspects(self, other: Contents) -> Iterable[int]:
        """Positions of the things to look at: a few, as hardly anything changes in a step, unless sizes did."""
        if self._sizes != other._sizes or not all(map(operator.is_, self._names, other._names)):
            return range(len(self.things))
        ends = list(accumulate(self._sizes))
        changed = compress(count(), map(operator.is_not, self._values, other._values))
        return sorted({bisect_right(ends, place) for place in changed})

    def _bounds(self) -> tuple[list[int], list[int]]:
        """Where the names and the values of each thing begin, and where the last ones end."""
        named = [size if thing.is_named else 0 for size, thing in zip(self._sizes, self.things, strict=True)]
        return list(accumulate(named, initial=0)), list(accumulate(self._sizes, initial=0))

    def _entries(self, i: int, bounds: tuple[list[int], list[int]]) -> _Entries:
        names, values = bounds
        return self._names[names[i] : names[i + 1]], self._values[values[i] : values[i + 1]]

    def changed_since(self, other: Contents) -> list[Thing]:
        """The things whose objects have come, gone or been replaced; plain numbers and strings do not count."""
        return [thing for thing, after, before in self._differing(other) if _objects(before[1]) != _objects(after[1])]


def _same_names(first: list[Any], second: list[Any]) -> bool:
    try:
        # Looks at identity first.
        return first == second
    except (RuntimeError, ValueError):
        return False


def _identical(first: tuple[list[Any], list[Any]], second: tuple[list[Any], list[Any]]) -> bool:
    return all(len(a) == len(b) and all(map(operator.is_, a, b)) for a, b in zip(first, second, strict=True))


def _objects(values: list[Any]) -> set[int]:
    return {id(value) for value in values if type(value) not in ATOMS}

"""What is in many things at one time, read and compared in one go (method §6)."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

from lightning_bsqh.network.reach import ATOMS
from lightning_bsqh.network.things import Thing


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
        for thing, before, after in zip(self.things, self.each(), now.each(), strict=True):
            if not _identical(before, after):
                thing.put(*before)

    def each(self) -> Iterator[tuple[list[Any], list[Any]]]:
        """Names and values of one thing after the other; no names where there are none."""
        ends = [0]
        for size in self._sizes:
            ends.append(ends[-1] + size)
        name = 0
        for thing, (start, end) in zip(self.things, pairwise(ends), strict=True):
            names = self._names[name : name + end - start] if thing.is_named else []
            name += len(names)
            yield names, self._values[start:end]

    def changed_since(self, other: Contents) -> list[Thing]:
        """The things whose objects have come, gone or been replaced; plain numbers and strings do not count."""
        return [
            thing
            for thing, before, after in zip(self.things, other.each(), self.each(), strict=True)
            if not _identical(before, after) and _objects(before[1]) != _objects(after[1])
        ]


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

"""One part of what a module consists of, such as all but its metrics, and its state at one time (method §6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_bsqh.network import things
from lightning_bsqh.network.contents import Contents
from lightning_bsqh.network.outline import outline
from lightning_bsqh.network.reach import Holding
from lightning_bsqh.network.tensor_copies import TensorCopies, Watch, equal, is_writable
from lightning_bsqh.network.things import Thing

#: Up to this number of bytes a tensor or an array is always copied.
SMALL = 2**14


class Section:
    """What is to be remembered of some modules, or of a batch.

    What is small is always copied, and so are buffers. What is large is copied the first time; if the first forward
    has left it alone it is only watched from then on, until somebody is seen to write there.

    Args:
        lively: What has been seen to change, by identity; shared with others.
        allowance: So many bytes may be copied the first time.
    """

    def __init__(self, lively: dict[int, Any], allowance: int) -> None:
        self.lively = lively
        self._allowance = allowance
        self._is_new = True
        self._first: SectionState | None = None
        #: The last state, whose layouts are used again.
        self.latest: SectionState | None = None
        self.clear()

    def clear(self) -> None:
        """Forgets what there is, but not what is known of it."""
        self.things: list[Thing] = []
        self.hooks: list[Thing] = []
        self.empty: list[dict[Any, Any]] = []
        self._could_fill: list[tuple[dict[Any, Any], int]] = []
        self._owners: dict[Any, list[int]] = {}
        self._values: dict[int, Any] = {}
        self._buffers: dict[int, Tensor] = {}
        self._tensors: dict[int, Tensor] = {}
        self._bulky: list[Thing] = []
        self._iterators: list[Any] = []
        self._contents: Contents | None = None
        self._hook_contents: Contents | None = None

    def add(self, owner: int, holding: Holding, buffers: Iterable[Tensor] = (), others: Iterable[Tensor] = ()) -> None:
        """Takes in what one module holds.

        Args:
            owner: The module's identity.
            holding: What it holds.
            buffers: Its buffers.
            others: Its parameters that are not trained.
        """
        for thing in holding.things:
            owners = self._owners.setdefault(thing.key, [])
            if not owners:
                self.things.append(thing)
            owners.append(owner)
        for thing in holding.hooks:
            self._owners[thing.key] = [owner]
            self.hooks.append(thing)
        self.empty += holding.empty
        self._could_fill += [(each, owner) for each in (*holding.empty, *holding.hookless)]
        self._values.update((id(value), value) for value in holding.values)
        self._buffers.update((id(t), t) for t in buffers if is_writable(t))
        self._tensors.update((id(t), t) for t in (*others, *holding.tensors) if is_writable(t))
        self._bulky += holding.bulky
        self._iterators += holding.iterators

    def arrange(self) -> None:
        """Decides what is copied and what is watched."""
        loose = [t for key, t in self._tensors.items() if key not in self._buffers]
        kept = self._chosen(loose, [t.numel() * t.element_size() for t in loose])
        self.fixed = list(self._buffers.values())
        self.loose = [t for t in loose if id(t) in kept]
        self.watched = [t for t in loose if id(t) not in kept]
        values = list(self._values.values())
        kept = self._chosen(values, [getattr(v, "nbytes", 0) for v in values])
        self.values = [v for v in values if id(v) in kept]
        arrays = [v for v in values if id(v) not in kept]
        self.outlined = [*arrays, *(thing.target for thing in self._bulky), *self._iterators]
        self.latest = None

    def _chosen(self, members: Sequence[Any], sizes: Sequence[int]) -> set[int]:
        """Which of them are copied, by identity."""
        chosen = set()
        left = self._allowance if self._is_new else 0
        for size, member in sorted(zip(sizes, members, strict=True), key=lambda pair: pair[0]):
            left -= size
            if size <= SMALL or id(member) in self.lively or left >= 0:
                chosen.add(id(member))
        return chosen

    # ------------------------------------------------------------------ at every time

    def stale_owners(self) -> set[int]:
        """The modules that hold other objects than when this was last asked."""
        stale = {owner for each, owner in self._could_fill if each}
        self._contents, others = self._compared(Contents(self.things), self._contents)
        self._hook_contents, hooks = self._compared(Contents(self.hooks), self._hook_contents)
        return stale | others | hooks

    def _compared(self, now: Contents, before: Contents | None) -> tuple[Contents, set[int]]:
        """What to remember of the two, and the modules that hold other objects now."""
        if before is None:
            return now, set()
        if now.is_as(before):
            return before, set()
        return now, {owner for thing in now.changed_since(before) for owner in self._owners[thing.key]}

    @property
    def contents(self) -> Contents:
        """What is in the things, as :meth:`stale_owners` has last seen it."""
        if self._contents is None:
            self._contents, self._hook_contents = Contents(self.things), Contents(self.hooks)
        return self._contents

    def take(self) -> SectionState:
        """The state as it is now; :meth:`stale_owners` comes first."""
        if self._first is not None:
            # After the first forward: what nobody has written into is only watched from now on.
            self._is_new = False
            self.lively.update((id(each), each) for each in self._first.written())
            self._first = None
            self.arrange()
        self.latest = SectionState(self)
        if self._is_new:
            self._first = self.latest
        return self.latest


class SectionState:
    """What there was of a section at one time.

    Args:
        section: The section.
    """

    fixed: TensorCopies
    loose: TensorCopies
    _watch: Watch

    def __init__(self, section: Section) -> None:
        earlier = section.latest
        self._empty = section.empty
        self.contents = section.contents
        self.fixed = TensorCopies(section.fixed, earlier.fixed.layout if earlier else None)
        self.loose = TensorCopies(section.loose, earlier.loose.layout if earlier else None)
        self.values = [(each, things.value_of(each)) for each in section.values]
        self._watch = Watch(section.watched, earlier._watch if earlier else None)
        self._outlines = [(each, outline(each)) for each in section.outlined]

    def restore(self, now: SectionState | None = None) -> None:
        """Puts everything back.

        Args:
            now: The state at the moment, if that is known.
        """
        self.contents.restore(now.contents if now is not None else None)
        if any(self._empty):
            for each in self._empty:
                each.clear()
        self.fixed.restore()
        self.loose.restore()
        for target, value in self.values:
            things.put_value(target, value)

    def restore_unless(self, keep: Tensor) -> None:
        """Puts the tensors back unless a boolean scalar of the device says otherwise."""
        self.fixed.restore_unless(keep)
        self.loose.restore_unless(keep)

    def changed(self) -> list[Any]:
        """What has changed since and is not remembered here."""
        others = [each for each, before in self._outlines if outline(each) != before]
        return [*self._watch.changed(), *others]

    def written(self) -> Iterator[Any]:
        """The large tensors and arrays that have been written into since."""
        with torch.no_grad():
            for tensor, value in self.loose.items():
                if not equal(tensor, value):
                    yield tensor
        for target, value in self.values:
            if not things.same_value(things.value_of(target), value):
                yield target

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Everything that is remembered as a copy, with that copy."""
        yield from self.fixed.items()
        yield from self.loose.items()
        yield from self.values

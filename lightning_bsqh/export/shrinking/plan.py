"""Which channels go: as many as can, so that every layer that stays gives what it gave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_bsqh.export.shrinking.units import Channels, Units

LAST = "is the last one left there, and a layer needs one"


class Site(Protocol):
    """A place in the network that has a say, or that changes when channels go."""

    def objections(self, plan: Plan) -> Iterator[tuple[Tensor, str]]:
        """Units that cannot be removed, given what else is; and why. More units kept never make fewer objections."""

    def wishes(self, plan: Plan) -> Iterator[tuple[Tensor, str]]:
        """Units of which one must stay, in order of preference; nothing if all is well."""

    def rebuild(self, plan: Plan) -> None:
        """Puts the smaller layer in place."""


class Plan:
    """The units that are removed.

    Starts with all and takes back what meets an objection, until there is none: the largest set that can go.

    Args:
        units: The units, with those that cannot go.
        sites: All that may object.
        tensors: The channels of every tensor; none may lose all.
    """

    def __init__(self, units: Units, sites: Sequence[Site], tensors: Iterable[Channels]) -> None:
        self._roots = units.roots()
        self._tied = units.tied
        self._removed = torch.ones(len(self._roots), dtype=torch.bool)
        self.reasons: dict[int, str] = {}
        for root, reason in units.kept.items():
            self._keep_root(root, reason)
        # Parts before the wholes that they belong to, so that one channel can do for both.
        self._settle(sites, sorted({tuple(c.ids.tolist()): c.ids for c in tensors}.values(), key=len))

    def removed(self, ids: Tensor) -> Tensor:
        """Which of the units go, boolean, in the shape of ``ids``."""
        return self._removed[self._roots[ids]]

    def kept_positions(self, ids: Tensor) -> Tensor:
        """The positions in ``ids`` of units that stay, int64."""
        return (~self.removed(ids)).nonzero().flatten()

    def reason(self, unit: int) -> str:
        """Why a unit stays."""
        root = int(self._roots[unit])
        tied = f" (goes only with the channels it meets in {self._tied[root]})" if root in self._tied else ""
        return self.reasons.get(root, "") + tied

    def _settle(self, sites: Sequence[Site], tensors: list[Tensor]) -> None:
        settled = False
        while not settled:
            settled = True
            for site in sites:
                for ids, reason in site.objections(self):
                    settled &= not self._keep(ids, reason)
            for ids in tensors if settled else []:
                if bool(self.removed(ids).all()) and len(ids):
                    settled &= not self._keep(ids[:1], LAST)
            # Only once all else is settled, or more would stay than must.
            for site in sites if settled else []:
                for ids, reason in site.wishes(self):
                    settled &= not self._keep(ids[:1], reason)

    def _keep(self, ids: Tensor, reason: str) -> bool:
        """Whether that is news."""
        roots = self._roots[ids][self.removed(ids)].unique().tolist()
        for root in roots:
            self._keep_root(root, reason)
        return bool(roots)

    def _keep_root(self, root: int, reason: str) -> None:
        self._removed[root] = False
        self.reasons.setdefault(root, reason)

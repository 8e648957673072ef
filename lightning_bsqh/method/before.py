"""The weights before a step that was not tested, so that it can be taken back (method §2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_bsqh.network.packing import Pack
from lightning_bsqh.network.tree import version

#: In the state of every parameter that such a step has moved.
KEY = "before"

States = Sequence[dict[str, Any]]


class Before:
    """Remembers weights in the states of their parameters, so that checkpoints keep them."""

    def __init__(self) -> None:
        # Versions of the parameters after the step; None if they are not known.
        self._versions: list[int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Copies of parameters count anew.
        return {"_versions": None}

    def keep(self, packs: Sequence[Pack], points: Sequence[Tensor], states: States) -> None:
        """Called after a step that was not tested.

        Args:
            packs: All parameters.
            points: What they held before, one vector ``[n]`` per pack; not copied.
            states: What is remembered of each parameter.
        """
        for pack, point in zip(packs, points, strict=True):
            for position, piece in zip(pack.positions, pack.pieces(point), strict=True):
                states[position][KEY] = piece
        self._versions = _versions(packs)

    def is_known(self, packs: Sequence[Pack], states: States) -> bool:
        """Whether there is a step to take back, and nobody else has changed the weights since."""
        kept = any(KEY in state for state in states)
        return kept and (self._versions is None or self._versions == _versions(packs))

    def put_back(self, packs: Sequence[Pack], states: States) -> None:
        """Puts the weights back into the parameters."""
        for pack in packs:
            # A parameter that has joined since stays as it is.
            pack.put(torch.cat([states[i].get(KEY, p.detach()).to(p.device).reshape(-1) for i, p in pack]))
        self.forget(states)

    def forget(self, states: States) -> None:
        """Lets go of them."""
        for state in states:
            state.pop(KEY, None)

    def reset(self) -> None:
        """The states are others now, and their parameters hold what they did after the step."""
        self._versions = None


def _versions(packs: Iterable[Pack]) -> list[int]:
    return [version(p) for pack in packs for p in pack.parameters]

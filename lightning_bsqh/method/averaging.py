"""The average of the adjoint gradient over recent batches, along which candidates are made (method §4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_bsqh.method.packed_state import PackedState, States
from lightning_bsqh.network.packing import Pack


class Averaging:
    """Ḡ ← share · Ḡ + (1 − share) · G, which starts as the first G, and anew after an iteration without a step.

    The average lies in the optimizer's ``state`` of every parameter as ``mean``. It changes only in :meth:`commit`,
    when the iteration is through, so that one that is skipped or interrupted leaves nothing.

    Args:
        share: The share of the past, in [0, 1). With 0 nothing is remembered and Ḡ is G.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._means = PackedState("mean")

    def direction(self, pack: Pack, gradient: Tensor, states: States) -> Tensor:
        """−Ḡ with this iteration's gradient taken in.

        Args:
            pack: Whose parameters.
            gradient: −G of all of them, shape ``[n]``.
            states: What is remembered of each parameter of the pack.

        Returns:
            A vector of shape ``[n]``; ``gradient`` itself if there is no past.
        """
        known = self.known(pack, gradient, states)
        return gradient if known is None else torch.lerp(gradient, known, self.share)

    def commit(self, pack: Pack, gradient: Tensor, states: States, has_moved: bool) -> None:
        """Remembers this iteration's gradient.

        Args:
            pack: Whose parameters.
            gradient: −G of all of them, shape ``[n]``.
            states: What is remembered of each parameter of the pack; changed.
            has_moved: Whether a candidate became the iterate; else the average starts anew with the next iteration.
        """
        if not self.share:
            return
        if not has_moved:
            self.forget(states)
        elif (known := self.known(pack, gradient, states)) is None:
            self.keep(pack, gradient.clone(), states)
        else:
            self.keep(pack, torch.lerp(gradient, known, self.share, out=known), states)

    def known(self, pack: Pack, gradient: Tensor, states: States) -> Tensor | None:
        """The average so far, with the present gradient for those that have none; None if no one has."""
        if not self.share or not self.has_past(states):
            return None
        vector = self._means.find(pack, states)
        return self._means.gather(pack, states, gradient) if vector is None else vector

    def has_past(self, states: States) -> bool:
        """Whether there is an average of any of these."""
        return any(self._means.key in state for state in states)

    def keep(self, pack: Pack, mean: Tensor, states: States) -> None:
        """Puts the average, shape ``[n]``, into the states; not copied."""
        self._means.hold(pack, mean, states)

    def forget(self, states: States) -> None:
        """Lets go of the average."""
        self._means.drop(states)

    def repack(self) -> None:
        """The packs are about to be made anew: what is kept for the present ones can go."""
        self._means.repack()


class AveragingOnDevice:
    """The same where only the device knows how an iteration has ended (``decide="device"``).

    Args:
        averaging: What the host has.
        packs: All parameters.
        states: What is remembered of each parameter.
    """

    def __init__(self, averaging: Averaging, packs: Sequence[Pack], states: States) -> None:
        self._averaging = averaging
        # Without a share there is nothing to remember of any of them.
        packs = packs if averaging.share else []
        self._states = {pack: [states[i] for i in pack.positions] for pack in packs}
        self._vectors: dict[Pack, Tensor] = {}
        self._full = {pack: _share(averaging.share, pack) for pack in packs}
        # What share the past has in the next iteration: none after one without a step.
        pasts = {pack: averaging.share if averaging.has_past(self._states[pack]) else 0.0 for pack in packs}
        self._shares = {pack: _share(past, pack) for pack, past in pasts.items()}

    def direction(self, pack: Pack, gradient: Tensor) -> Tensor:
        """As :meth:`Averaging.direction`."""
        if pack not in self._states:
            return gradient
        if pack not in self._vectors:
            known = self._averaging.known(pack, gradient, self._states[pack])
            self._vectors[pack] = gradient.clone() if known is None else known
        return torch.lerp(gradient, self._vectors[pack], self._shares[pack])

    def commit(self, pack: Pack, gradient: Tensor, finite: Tensor, accepted: Tensor) -> None:
        """Remembers this iteration's gradient.

        Args:
            pack: Whose parameters.
            gradient: −G of all of them, shape ``[n]``.
            finite: Whether the iteration counts, a boolean scalar.
            accepted: Whether the candidate became the iterate, a boolean scalar.
        """
        if pack not in self._states:
            return
        known, share = self._vectors[pack], self._shares[pack]
        self._vectors[pack] = torch.where(accepted, torch.lerp(gradient, known, share), known)
        self._shares[pack] = torch.where(finite, self._full[pack] * accepted, share)

    def numbers(self) -> list[Tensor]:
        """What the host does not know, as scalars."""
        return list(self._shares.values())

    def write_back(self, numbers: Iterator[float]) -> None:
        """Puts all into the states, from as many numbers as :meth:`numbers` gave."""
        for pack, states in self._states.items():
            if not next(numbers):
                self._averaging.forget(states)
            elif pack in self._vectors:
                self._averaging.keep(pack, self._vectors[pack], states)


def _share(value: float, pack: Pack) -> Tensor:
    return torch.full((), value, device=pack.parameters[0].device, dtype=pack.parameters[0].dtype)

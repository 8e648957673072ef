"""What R demands of each tensor in an iteration, for those, too, that come, go and come back in the course of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_bsqh.regularizers.base import Regularizer
from lightning_bsqh.regularizers.by_name import ByName

#: A clock: in which iteration it was set, and to which share of the training, in [0, 1].
Clock = tuple[int, float]
_START: Clock = (0, 0.0)


class Demand:
    """Gives R as it holds in one iteration on the tensors that are trained in it.

    R at step k of K is R at the share k/K of the training. A tensor that joins later, because it was frozen before,
    has its own share, which goes from 0 in its first iteration to 1 in the last one: so a ramp begins for it when it
    comes, instead of emptying it at one blow. While a tensor is frozen its share stands still. Where the length of the
    training changes, all shares go on from what they have reached: a demand never loosens.

    Tensors with equal shares compete with each other as ever; those with different shares are apart, each with R's
    demand on themselves.

    Args:
        order: Full names of all tensors that R may act on, in the order in which R knows them; frozen ones, too.
    """

    def __init__(self, order: Sequence[str]) -> None:
        self._order = list(order)
        self._common: Clock = _START
        self._clocks: dict[str, Clock] = {}
        # What was trained in the last iteration, and the shares at which others have left; None before the first.
        self._present: set[str] | None = None
        self._left: dict[str, float] = {}

    def add(self, name: str) -> None:
        """Takes a tensor that was not known before, at the end of the order."""
        if name not in self._order:
            self._order.append(name)

    @property
    def order(self) -> list[str]:
        """The names in the order in which R knows them."""
        return list(self._order)

    def begin(self, names: Sequence[str], step: int, total_steps: int | None) -> None:
        """Notices who has come and gone; called once before iteration ``step`` (from 0).

        Args:
            names: The tensors that R acts on in this iteration.
            step: Number of iterations done before it.
            total_steps: Number of iterations planned, None if unknown.
        """
        now = set(names)
        if self._present is not None and step > 0 and now != self._present:
            for name in self._present - now:
                self._left[name] = self.share(name, step, total_steps)
            for name in now - self._present:
                self._clocks[name] = (step, self._left.pop(name, 0.0))
        self._present = now

    def share(self, name: str, step: int, total_steps: int | None) -> float:
        """The share of the training that a tensor has reached, in [0, 1]; 0 if the length is unknown."""
        return _share(self._clocks.get(name, self._common), step, total_steps)

    def at(self, regularizer: Regularizer, names: Sequence[str], step: int, total_steps: int | None) -> Regularizer:
        """R on these tensors, handed over in this order, in iteration ``step`` of ``total_steps``."""

        def held(part: Regularizer, clock: Clock) -> Regularizer:
            return part.at(_step_of(clock, step, total_steps), total_steps)

        return self._composed(regularizer, names, held)

    def in_full(self, regularizer: Regularizer, names: Sequence[str]) -> Regularizer:
        """R on these tensors as at the end of the training."""
        return self._composed(regularizer, names, lambda part, clock: part)

    def lengthen(self, step: int, before: int | None, after: int) -> bool:
        """Goes on from the shares reached, now that the training ends after ``after`` iterations.

        Args:
            step: Number of iterations done.
            before: Number of iterations that were planned so far, None if it was unknown.
            after: Number of iterations planned from now on.

        Returns:
            Whether anything changes for an R with a ramp.
        """
        if before in (None, after) or step == 0:
            return False
        self._clocks = {name: (step, self.share(name, step, before)) for name in self._clocks}
        self._common = (step, self.share("", step, before))
        return True

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, in plain types."""
        return {
            "common": list(self._common),
            "clocks": {name: list(clock) for name, clock in self._clocks.items()},
            "left": dict(self._left),
            "present": None if self._present is None else sorted(self._present),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        start, reached = state["common"]
        self._common = (int(start), float(reached))
        self._clocks = {str(name): (int(k), float(share)) for name, (k, share) in state["clocks"].items()}
        self._left = {str(name): float(share) for name, share in state["left"].items()}
        self._present = None if state["present"] is None else set(state["present"])

    def _composed(
        self, regularizer: Regularizer, names: Sequence[str], held: Callable[[Regularizer, Clock], Regularizer]
    ) -> Regularizer:
        if list(names) == self._order and not self._clocks:
            return held(regularizer, self._common)
        place = {name: i for i, name in enumerate(self._order)}
        clocks = [self._clocks.get(name, self._common) for name in names]
        cohorts: dict[Clock, list[int]] = {} if names else {self._common: []}
        for name, clock in zip(names, clocks, strict=True):
            cohorts.setdefault(clock, []).append(place[name])
        parts = {clock: held(regularizer.restricted_to(own), clock) for clock, own in cohorts.items()}
        if len(parts) == 1:
            return next(iter(parts.values()))
        return ByName({str(clock): part for clock, part in parts.items()}, [str(clock) for clock in clocks])


def _share(clock: Clock, step: int, total_steps: int | None) -> float:
    start, reached = clock
    if total_steps is None:
        return reached
    left = total_steps - 1 - start
    return reached + (1.0 - reached) * min((step - start) / left, 1.0) if left > 0 else 1.0


def _step_of(clock: Clock, step: int, total_steps: int | None) -> int:
    """The iteration in which a training from the start would have the same share."""
    if clock == _START:
        return step
    return step - clock[0] if total_steps is None else round(_share(clock, step, total_steps) * (total_steps - 1))

"""One micro-batch of full-batch mode, and what is known of it and of a whole pass (method §5)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_bsqh.network.module_state import ModuleState
from lightning_bsqh.network.tree import detached, versions
from lightning_bsqh.sweeps.base import Start


@dataclass
class ForwardResult:
    """What one forward of a micro-batch left.

    Attributes:
        loss: Its mean loss, with an autograd graph until :meth:`detach`.
        pure: Whether the forward drew no random numbers and did nothing else that cannot be repeated from here, so
            that another one from the same state gives the same.
        before: The module before the forward; None if nobody asked, or the module is unknown.
        after: The module after the forward; None if nobody asked, or the module is unknown.
        output: What training_step returned.
        calls: The entries for the log that it made.
    """

    loss: Tensor
    pure: bool
    before: ModuleState | None = None
    after: ModuleState | None = None
    output: Any = None
    calls: Sequence[Any] = ()

    def detach(self) -> None:
        """Lets the graph go."""
        self.loss = self.loss.detach()
        self.output = detached(self.output)


def with_metrics_of(last: ForwardResult | None, before: ModuleState | None) -> ModuleState | None:
    """Makes the metrics count on from the micro-batch before, as they do in a pass.

    Args:
        last: The outcome of that micro-batch, None if there is none.
        before: The state that the module is in.

    Returns:
        The state that it is in then.
    """
    if before is None or last is None or last.after is None or not before.has_metrics:
        return before
    last.after.restore_metrics()
    return before.again()


class MicroBatch(ABC):
    """One micro-batch, for as long as its data are at hand.

    Attributes:
        samples: Its number of samples, 0 if there is no loss on it.
        repeats: Whether its data and the module, but for metrics, were the same in the pass before; None in the first
            pass.
        changes: In how many passes in a row they were not.
        is_repeatable: False once a trial has done something that nobody else can do again for it.
    """

    samples: int = 0
    repeats: bool | None = None
    changes: int = 0
    is_repeatable: bool = True

    def note(self, repeats: bool) -> None:
        """Notes whether data and module are the same as in the pass before."""
        self.repeats = repeats
        self.changes = 0 if repeats else self.changes + 1

    @abstractmethod
    def loss(self) -> float:
        """The loss at the weights that the parameters hold; without graph or trace."""

    @abstractmethod
    def outcome(self, last: ForwardResult | None = None) -> ForwardResult:
        """One forward at the weights that the parameters hold, with a graph; without a trace.

        Args:
            last: The outcome of the micro-batch before, if the metrics are to count on from there.
        """

    @abstractmethod
    def undo(self) -> None:
        """Puts the module back to what it was when this micro-batch came."""

    @abstractmethod
    def starts(self) -> list[Start]:
        """Where its forward sweep began."""

    @abstractmethod
    def starts_like(self, outcome: ForwardResult) -> bool:
        """Whether the module is as it was when the forward of that outcome began, metrics included."""


class CachedPass:
    """All that one pass found out at one point.

    Args:
        weights: All parameters that the loss may depend on; they hold the point.
        outcomes: One for each micro-batch.
        gradients: −G of the whole data. None if there is one micro-batch, whose graph is still there.
        is_final: Whether the gradients have been through the hooks that may change them, as after an ordinary backward.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        outcomes: Sequence[ForwardResult],
        gradients: Sequence[Tensor | None] | None,
        is_final: bool = False,
    ) -> None:
        self.outcomes = outcomes
        self.gradients = gradients
        self.is_final = is_final
        self._point = [w.detach().clone() for w in weights]
        self._trained = [w.requires_grad for w in weights]
        # Autograd refuses a graph whose parameters have been written into since.
        self._versions = versions(list(weights))

    def holds_at(self, weights: Sequence[Tensor]) -> bool:
        """Whether the parameters hold that point, and the graph, if it is needed, can still be used."""
        if self._trained != [w.requires_grad for w in weights]:
            return False
        if self.gradients is None and self._versions != versions(list(weights)):
            return False
        return all(torch.equal(w, q) for w, q in zip(weights, self._point, strict=True))


class AdjointChoice:
    """Whether trials over several micro-batches take the adjoint along.

    In units of a forward, a backward taken as two: with it an iteration of t trials costs 3t, since the
    next forward and adjoint sweep are then known; without it 3 + t. So it pays while t < 1.5.

    Args:
        memory: Over how many iterations t is averaged.
    """

    def __init__(self, memory: int = 10) -> None:
        self._trials: deque[int] = deque(maxlen=memory)

    def observe(self, trials: int) -> None:
        """Notes how many trials an iteration took."""
        self._trials.append(trials)

    @property
    def along(self) -> bool:
        """Whether to take it along."""
        return bool(self._trials) and sum(self._trials) < 1.5 * len(self._trials)

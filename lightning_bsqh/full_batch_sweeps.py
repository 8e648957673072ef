"""The sweeps of full-batch mode over micro-batches, without a forward or backward that is known already (method §5)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh.full_batch import WeightedMean
from lightning_bsqh.isolation import ModuleState
from lightning_bsqh.nests import versions
from lightning_bsqh.sweeps import Sweeps


@dataclass
class Outcome:
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


def detached(value: Any) -> Any:
    """The same nest of plain containers without autograd graphs."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {key: detached(member) for key, member in value.items()}
    if type(value) in (list, tuple):
        return type(value)([detached(member) for member in value])
    return value


def with_metrics_of(last: Outcome | None, before: ModuleState | None) -> ModuleState | None:
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


class Part(ABC):
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
    def outcome(self, last: Outcome | None = None) -> Outcome:
        """One forward at the weights that the parameters hold, with a graph; without a trace.

        Args:
            last: The outcome of the micro-batch before, if the metrics are to count on from there.
        """

    @abstractmethod
    def starts_like(self, outcome: Outcome) -> bool:
        """Whether the module is as it was when the forward of that outcome began, metrics included."""


class Known:
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
        outcomes: Sequence[Outcome],
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


P = TypeVar("P", bound=Part)


class FullBatchSweeps(Sweeps, Generic[P]):
    """Sweeps over all micro-batches of the data.

    The forward and adjoint sweep comes in pieces, micro-batch by micro-batch: :meth:`begin_pass`, then for each
    of them :meth:`begin_part` and, unless that gives what is known, :meth:`end_part`, then :meth:`add_part`. What a
    trial or an earlier sweep has found out at the present weights is used instead of another forward, if that would be
    the same function: same data, same state of the module, no random numbers.

    The micro-batches are kept from one pass to the next, for the trials and for this comparison.

    Args:
        devices: Where the network lives.
        parameters: Gives the parameters that are trained, all of them.
        module: The network, None if unknown. Its other parameters count when it is asked whether anything changed.
        reuse: Whether anything may be used again.
    """

    def __init__(
        self,
        devices: Iterable[torch.device],
        parameters: Callable[[], list[Tensor]],
        module: nn.Module | None,
        reuse: bool = True,
    ) -> None:
        super().__init__(devices)
        self._parameters = parameters
        self._network = module
        self._reuse = reuse
        self._parts: list[P] = []
        self._outcomes: list[Outcome | None] = []
        self._mean = WeightedMean()
        self._adjoint = AdjointChoice()
        self._trials = 0
        self._dtype = torch.float64
        # What is known: used in this pass; at its w; at the last trial's û.
        self._known: Known | None = None
        self._at_start: Known | None = None
        self._at_trial: Known | None = None

    # ------------------------------------------------------------------ forward and adjoint sweep

    def begin_pass(self) -> None:
        """The first micro-batch of a pass is about to come."""
        if self._trials:
            self._adjoint.observe(self._trials)
        self._trials = 0
        self._mean = WeightedMean()
        self._outcomes = []
        self.complete = False
        weights = self._weights()
        candidates = (self._at_trial, self._at_start)
        self._known = None
        if all(part.is_repeatable for part in self._parts):
            self._known = next((k for k in candidates if k is not None and k.holds_at(weights)), None)
        self._at_trial = self._at_start = None

    def next_part(self, make: Callable[[], P]) -> P:
        """The micro-batch that takes the next data: the one that had the same place in the last pass, or a new one."""
        if len(self._outcomes) == len(self._parts):
            self._parts.append(make())
        return self._parts[len(self._outcomes)]

    @property
    def repeats_so_far(self) -> bool:
        """Whether all micro-batches of this pass were the same as in the last; then the next is worth a comparison."""
        return all(part.repeats for part in self._parts[: len(self._outcomes)])

    def begin_part(self) -> Outcome | None:
        """What is known of the micro-batch that has just got its data; None if it needs a forward."""
        place = len(self._outcomes)
        part = self._parts[place]
        if self._known is not None and not (
            place < len(self._known.outcomes) and part.repeats and part.starts_like(self._known.outcomes[place])
        ):
            self._forget()
        return None if self._known is None else self._known.outcomes[place]

    def end_part(self, outcome: Outcome | None) -> None:
        """Takes the outcome of the micro-batch's forward, known or new; None if there is no loss on it."""
        self._outcomes.append(outcome)
        if outcome is not None:
            self._dtype = outcome.loss.dtype

    def add_part(self, loss: float | None) -> None:
        """Adds the micro-batch's loss, and the gradients that the parameters hold, to the mean."""
        part = self._parts[len(self._outcomes) - 1]
        if loss is None:
            part.samples = 0
        else:
            known = self._known
            final = known.gradients if known is not None and known.is_final else None
            self._mean.add(loss, part.samples, final or [p.grad for p in self._parameters()])
        outcome = self._outcomes[-1]
        if outcome is not None:
            outcome.detach()

    def end_pass(self) -> Tensor | None:
        """The last micro-batch is in: puts −G of the whole data into every parameter's ``grad``.

        Returns:
            The mean loss over all samples, of shape [] and in double precision; None if there was no loss at all.
        """
        if self._known is not None and len(self._known.outcomes) != len(self._outcomes):
            self._forget()
        self.complete = True
        self._known = None
        del self._parts[len(self._outcomes) :]
        if self.boundaries is not None and self._mean.samples:
            self.boundaries.weigh([part.samples / self._mean.samples for part in self._parts])
        if not self._mean.samples:
            return None
        for p, gradient in zip(self._parameters(), self._mean.gradients, strict=True):
            p.grad = None if gradient is None else gradient.clone()
        outcomes = self._pure_outcomes()
        if outcomes is not None:
            self._at_start = Known(self._weights(), outcomes, self._mean.gradients, is_final=True)
        return torch.tensor(self._mean.loss, dtype=torch.float64)

    def known_gradients(self) -> Sequence[Tensor | None] | None:
        """−G of the whole data where this pass uses it again; None if a graph is used, or nothing."""
        return None if self._known is None else self._known.gradients

    def _forget(self) -> None:
        """Something has changed within the pass: what was used again so far is computed after all."""
        known, self._known = self._known, None
        if known is None or known.gradients is None or not self._outcomes:
            return
        self._mean = WeightedMean()
        for part in self._parts[: len(self._outcomes)]:
            self._add_adjoint(self._mean, part)

    # ------------------------------------------------------------------ trials

    @override
    def trial(self) -> float:
        self._trials += 1
        self._at_trial = None
        parts = [part for part in self._parts if part.samples]
        if self._pure_outcomes() is None:
            return self._run_trial(lambda: self._mean_loss(parts))
        if len(parts) == 1:
            return self._trial_with_graph(parts[0])
        if self._adjoint.along and all(part.repeats for part in parts) and not _have_hooks(self._parameters()):
            return self._trial_with_adjoint(parts)
        return self._run_trial(lambda: self._mean_loss(parts))

    def _mean_loss(self, parts: Sequence[P]) -> float:
        mean = WeightedMean()
        for part in parts:
            loss = part.loss()
            if not math.isfinite(loss):
                # A rejection already.
                return loss
            mean.add(loss, part.samples)
        return mean.loss

    def _trial_with_graph(self, part: P) -> float:
        with torch.enable_grad(), self._pooling():
            outcome = part.outcome()
        part.is_repeatable &= outcome.pure
        if outcome.pure:
            self._at_trial = Known(self._weights(), [outcome], None)
        return float(outcome.loss.detach())

    def _trial_with_adjoint(self, parts: Sequence[P]) -> float:
        mean = WeightedMean()
        outcomes: list[Outcome] = []
        for part in parts:
            outcome = self._add_adjoint(mean, part, outcomes[-1] if outcomes else None)
            if not math.isfinite(float(outcome.loss)):
                return float(outcome.loss)
            outcomes.append(outcome)
        if all(outcome.pure for outcome in outcomes):
            self._at_trial = Known(self._weights(), outcomes, mean.gradients)
        return mean.loss

    def _add_adjoint(self, mean: WeightedMean, part: P, last: Outcome | None = None) -> Outcome:
        """One forward and backward of a micro-batch without a trace; leaves every parameter's ``grad`` alone."""
        parameters = self._parameters()
        trained = [p for p in parameters if p.requires_grad]
        with torch.enable_grad(), self._pooling():
            outcome = part.outcome(last)
        found: dict[int, Tensor] = {}
        if outcome.loss.requires_grad:
            gradients = torch.autograd.grad(outcome.loss, trained, allow_unused=True)
            found = {id(p): g for p, g in zip(trained, gradients, strict=True) if g is not None}
        outcome.detach()
        part.is_repeatable &= outcome.pure
        mean.add(float(outcome.loss), part.samples, [found.get(id(p)) for p in parameters])
        return outcome

    # ------------------------------------------------------------------ afterwards

    @override
    def resolution(self, loss: Tensor) -> float:
        # The mean is of double precision, whatever the losses are.
        return super().resolution(torch.empty((), dtype=self._dtype))

    def release(self) -> None:
        """Lets go after an iteration what is not known at the weights that it has left."""
        if not self.complete:
            return
        weights = self._weights()
        if self._at_trial is not None and not self._at_trial.holds_at(weights):
            self._at_trial = None
        if self._at_trial is not None or (self._at_start is not None and not self._at_start.holds_at(weights)):
            self._at_start = None

    def _weights(self) -> list[Tensor]:
        """The trained parameters and all others of the network."""
        trained = self._parameters()
        known = {id(p) for p in trained}
        others = [] if self._network is None else [p for p in self._network.parameters() if id(p) not in known]
        return trained + others

    def _pure_outcomes(self) -> list[Outcome] | None:
        """The outcomes of this pass if another one at the same weights would give the same, as far as is known."""
        outcomes = [outcome for outcome in self._outcomes if outcome is not None and outcome.pure]
        # Once may be a module that makes itself ready in its first pass; more often they will never be the same.
        hopeful = all(part.changes < 2 and part.is_repeatable for part in self._parts)
        # The true K of a layer needs the states and adjoints of an ordinary sweep.
        allowed = self._reuse and self.boundaries is None
        return outcomes if allowed and hopeful and len(outcomes) == len(self._outcomes) else None


def _have_hooks(parameters: Iterable[Tensor]) -> bool:
    """Whether anybody listens to the gradients of the parameters, who must not hear of a trial's.

    The only places where torch keeps these hooks; they have underscores and no public twin.
    """
    return any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters)

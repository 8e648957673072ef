"""The sweeps of full-batch mode over micro-batches, without a forward or backward that is known already (method §5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.sweeps.base import Start, Sweeps
from lightning_bsqh.sweeps.micro_batch import AdjointChoice, CachedPass, ForwardResult, MicroBatch
from lightning_bsqh.sweeps.weighted_mean import WeightedMean

P = TypeVar("P", bound=MicroBatch)


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
        #: Whether all micro-batches of a pass have come.
        self.complete = True
        self.boundaries: Boundaries | None = None
        self._closure: Callable[..., Any] | None = None
        self._parameters = parameters
        self._network = module
        self._reuse = reuse
        self._parts: list[P] = []
        self._outcomes: list[ForwardResult | None] = []
        self._mean = WeightedMean()
        self._adjoint = AdjointChoice()
        self._trials = 0
        self._goes_along = False
        # Loss and number of samples of all processes in the present micro-batch, if its gradients are theirs, too.
        self._of_all: tuple[float, int] | None = None
        self._dtype = torch.float64
        # What is known: used in this pass; at its w; at the last trial's û.
        self._known: CachedPass | None = None
        self._at_start: CachedPass | None = None
        self._at_trial: CachedPass | None = None

    # ------------------------------------------------------------------ several processes

    def go_along(self) -> None:
        """From now on runs as many forwards as any other process, as sharded parameters need it: none is left out."""
        self._reuse = False
        self._goes_along = True

    def share_part(self, of_all: tuple[float, int] | None, factor: float) -> None:
        """Tells what the processes have together, between forward and backward of a micro-batch.

        Args:
            of_all: Their mean loss and their number of samples; None if they leave it out.
            factor: By what this process multiplies its loss.
        """
        self._of_all = of_all
        if of_all is None and self._outcomes:
            self._outcomes[-1] = None

    @property
    def part_samples(self) -> int:
        """Number of samples here in the present micro-batch."""
        return self._parts[len(self._outcomes) - 1].samples if self._outcomes else 1

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

    def begin_part(self) -> ForwardResult | None:
        """What is known of the micro-batch that has just got its data; None if it needs a forward."""
        place = len(self._outcomes)
        part = self._parts[place]
        if self._known is not None and not (
            place < len(self._known.outcomes) and part.repeats and part.starts_like(self._known.outcomes[place])
        ):
            self._forget()
        return None if self._known is None else self._known.outcomes[place]

    def end_part(self, outcome: ForwardResult | None) -> None:
        """Takes the outcome of the micro-batch's forward, known or new; None if there is no loss on it."""
        self._outcomes.append(outcome)
        if outcome is not None:
            self._dtype = outcome.loss.dtype

    def add_part(self, loss: float | None) -> None:
        """Adds the micro-batch's loss, and the gradients that the parameters hold, to the mean."""
        part = self._parts[len(self._outcomes) - 1]
        if loss is None or self._outcomes[-1] is None:
            part.samples = 0
        else:
            known = self._known
            final = known.gradients if known is not None and known.is_final else None
            mean, samples = self._of_all or (loss, part.samples)
            self._mean.add(mean, samples, final or [p.grad for p in self._parameters()])
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
            self._at_start = CachedPass(self._weights(), outcomes, self._mean.gradients, is_final=True)
        return torch.tensor(self._mean.loss, dtype=torch.float64)

    @property
    def samples(self) -> int:
        """Number of samples here with a loss in this pass, once it is complete."""
        return sum(part.samples for part in self._parts)

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
    def trial(self) -> Tensor | float:
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
            with self.pooling():
                loss = part.loss()
            if not math.isfinite(loss) and not self._goes_along:
                # A rejection already.
                return loss
            mean.add(loss, part.samples)
        return mean.loss

    def _trial_with_graph(self, part: P) -> float:
        with torch.enable_grad(), self.pooling():
            outcome = part.outcome()
        part.is_repeatable &= outcome.pure
        if outcome.pure:
            self._at_trial = CachedPass(self._weights(), [outcome], None)
        return float(outcome.loss.detach())

    def _trial_with_adjoint(self, parts: Sequence[P]) -> float:
        mean = WeightedMean()
        outcomes: list[ForwardResult] = []
        for part in parts:
            outcome = self._add_adjoint(mean, part, outcomes[-1] if outcomes else None)
            if not math.isfinite(float(outcome.loss)):
                return float(outcome.loss)
            outcomes.append(outcome)
        if all(outcome.pure for outcome in outcomes):
            self._at_trial = CachedPass(self._weights(), outcomes, mean.gradients)
        return mean.loss

    def _add_adjoint(self, mean: WeightedMean, part: P, last: ForwardResult | None = None) -> ForwardResult:
        """One forward and backward of a micro-batch without a trace; leaves every parameter's ``grad`` alone."""
        parameters = self._parameters()
        trained = [p for p in parameters if p.requires_grad]
        with torch.enable_grad(), self.pooling():
            outcome = part.outcome(last)
        found: dict[int, Tensor] = {}
        if outcome.loss.requires_grad:
            gradients = torch.autograd.grad(outcome.loss, trained, allow_unused=True)
            found = {id(p): g for p, g in zip(trained, gradients, strict=True) if g is not None}
        outcome.detach()
        part.is_repeatable &= outcome.pure
        mean.add(float(outcome.loss), part.samples, [found.get(id(p)) for p in parameters])
        return outcome

    # ------------------------------------------------------------------ afterward

    @override
    def undo(self) -> None:
        if self._parts:
            self._parts[0].undo()

    @override
    def starts(self) -> list[Start]:
        return [start for part in self._parts for start in part.starts()]

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

    def _pure_outcomes(self) -> list[ForwardResult] | None:
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

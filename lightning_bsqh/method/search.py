"""The search for an ε whose candidate lowers J: trials, the test of acceptance, the rule (method §2, §4)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from lightning_bsqh.method.augmentation import Augmentation, Trial
from lightning_bsqh.method.candidate import Candidate
from lightning_bsqh.method.iteration import Iteration
from lightning_bsqh.method.reduction import Reduction

#: The largest number that counts as finite.
_LARGEST = sys.float_info.max


class NoStep(Exception):
    """There is nothing to step by on a batch.

    Args:
        loss: L_B(w).
    """

    def __init__(self, loss: float) -> None:
        super().__init__(loss)
        self.loss = loss


class NotFinite(NoStep):
    """The loss or the gradient is not finite."""


class WentAstray(NoStep):
    """The loss is far above what it was before the last step, which was not tested."""


@dataclass(frozen=True)
class SearchOptions:
    """What a search needs to know beside the rule for ε.

    Attributes:
        eta: η of the acceptance test.
        max_trials: Largest number of candidates that are compared.
        progress: Share of the training that is done, for the schedule of ε; None if the length is unknown.
        largest_gradient: An element of the gradient above it is as good as infinite.
        is_due: Whether the step is to be tested by a trial sweep; where it is not, it is in unrest all the same.
        stands_for: How many steps a trial speaks for: this one and the untested ones before it.
        loss_limit: L_B(w) above it says that the step to w, which was not tested, has gone astray.
    """

    eta: float
    max_trials: int
    progress: float | None
    largest_gradient: float = math.inf
    is_due: bool = True
    stands_for: int = 1
    loss_limit: float = math.inf

    @property
    def limit(self) -> float:
        """A gradient with an element above it is not finite."""
        return min(self.largest_gradient, _LARGEST)


@dataclass
class Found:
    """How a search ended.

    Attributes:
        loss: L_B(w).
        base_loss: The loss that candidates were compared with: L_B(w), or that of w's projection.
        change: L_B(û) − base_loss of the last candidate.
        candidate: The last candidate, in numbers.
        epsilon: Its ε.
        trials: Number of trial sweeps at candidates; 0 if the step was not tested.
        accepted: Whether it was accepted.
        tightened: Whether w violated a constraint that had just been tightened.
        first_epsilon: ε of the first candidate.
        reached: Of the parameters that no gradient had reached before, by position, whether this one's has.
        leaves_enough: Whether the last candidate leaves every tensor what it has to keep.
        kept_minimum: Whether that took R more work.
    """

    loss: float = math.nan
    base_loss: float = math.nan
    change: float = math.inf
    candidate: Candidate = field(default_factory=lambda: Candidate(0.0, 0.0, 0.0, 0.0))
    epsilon: float = math.nan
    trials: int = 0
    accepted: bool = False
    tightened: bool = False
    first_epsilon: float = math.nan
    reached: dict[int, bool] = field(default_factory=dict)
    leaves_enough: bool = True
    kept_minimum: bool = False

    @property
    def objective_before(self) -> float:
        """J at the point that candidates were compared with."""
        return self.base_loss + float(self.candidate.base_penalty)

    @property
    def is_tested(self) -> bool:
        """Whether there was a trial sweep."""
        return self.trials > 0

    @property
    def decrease(self) -> float:
        """By how much J has fallen; 0 if nothing was accepted, not a number if it was not tested."""
        return -(self.change + self.candidate.penalty_change) if self.accepted else 0.0


class Search:
    """Tries candidates until one is good enough.

    Args:
        iteration: Makes them.
        maximise: Puts û for an ε into the parameters and gives what it is worth; None if only a trial sweep can.
        propose: The same with a trial sweep; gives L_B(û), too.
        trial: Runs a trial sweep at what the parameters hold.
        augmentation: The rule for ε.
        options: The rest.
        reduction: Brings numbers to the host.
        on_first: Called with ε when the first candidate is in the parameters.
    """

    def __init__(
        self,
        iteration: Iteration,
        maximise: Callable[[float], Candidate] | None,
        propose: Callable[[float], tuple[Candidate, Tensor | float]],
        trial: Callable[[], Tensor | float],
        augmentation: Augmentation,
        options: SearchOptions,
        reduction: Reduction,
        on_first: Callable[[float], None] | None = None,
    ) -> None:
        self._iteration = iteration
        self._maximise = maximise
        self._propose = propose
        self._trial = trial
        self._augmentation = augmentation
        self._options = options
        self._reduction = reduction
        self._on_first = on_first
        self._projected = False
        self._least = 0.0
        # What was read last.
        self._values: dict[str, float] = {}
        self._length = self._relative = math.nan
        self._resolution = 0.0

    def run(self, loss: Tensor, resolution: float) -> Found:
        """Searches; afterward the parameters hold the new iterate.

        Args:
            loss: L_B(w), a scalar.
            resolution: Relative rounding error of the loss.

        Raises:
            NoStep: If there is nothing to step by; the parameters hold w or a candidate.
        """
        found = Found()
        if not self._options.is_due and self._steps_untested(found, loss, resolution):
            return found
        compared = 0
        while not found.accepted and compared < self._options.max_trials:
            epsilon = self._next_epsilon()
            change = self._attempt(found, epsilon, loss, resolution)
            if not found.leaves_enough:
                # Rare, and known only now: a tensor would be emptied, and R has to look at each of them.
                self._iteration.keep_minimum()
                found.kept_minimum = True
                change = self._attempt(found, epsilon, loss, resolution)
            raised = self._raised(epsilon)
            if raised > epsilon:
                # The batch's gradient is far longer than usual: this candidate is not even looked at.
                change = self._attempt(found, raised, loss, resolution)
            if found.epsilon > self._own_epsilon():
                # A limit that the gradient sets does not move by itself.
                self._least = 1.5 * found.epsilon
            compared += 1
            self._compare(found, change)
            if not found.accepted:
                self._iteration.follow_own_gradient()
        if not found.accepted:
            # A projection whose loss is not finite is no place to stay.
            self._iteration.restore_(to_start=not math.isfinite(found.base_loss))
        if not math.isfinite(found.base_loss):
            found.change += found.base_loss - found.loss if math.isfinite(found.change) else 0.0
            found.base_loss = found.loss
        return found

    def _own_epsilon(self) -> float:
        return self._augmentation.epsilon_at(self._options.progress)

    def _next_epsilon(self) -> float:
        return min(max(self._own_epsilon(), self._least), self._augmentation.epsilon_max)

    def _steps_untested(self, found: Found, loss: Tensor, resolution: float) -> bool:
        """Takes a step without a trial sweep; gives whether there was no reason to test it."""
        if self._maximise is None:
            return False
        epsilon = self._next_epsilon()
        self._read(found, epsilon, self._maximise(epsilon), {"loss": loss})
        self._start(found, epsilon, resolution)
        found.accepted = (
            found.leaves_enough
            and not found.tightened
            and not found.candidate.was_thrown_away
            and self._raised(epsilon) <= epsilon
        )
        found.change = math.nan if found.accepted else math.inf
        return found.accepted

    def _attempt(self, found: Found, epsilon: float, loss: Tensor, resolution: float) -> float:
        """One candidate and its trial sweep; gives L_B(û)."""
        candidate, trial_loss = self._propose(epsilon)
        first = found.trials == 0
        found.trials += 1
        self._read(found, epsilon, candidate, {"trial": trial_loss, "loss": loss})
        if first:
            self._start(found, epsilon, resolution)
        return self._values["trial"]

    def _read(self, found: Found, epsilon: float, candidate: Candidate, losses: dict[str, Tensor | float]) -> None:
        """The one look at the host for a candidate."""
        self._values = self._reduction.read({**losses, **self._iteration.scalars(), **candidate.scalars()})
        found.epsilon = epsilon
        found.candidate = Candidate.read_from(self._values)
        found.leaves_enough = bool(self._values["enough"])
        self._length = self._values["length"]
        weights = self._values.get("weights", math.nan)
        self._relative = math.sqrt(self._values["direction"] / weights) if weights > 0.0 else math.nan

    def _raised(self, epsilon: float) -> float:
        """ε to try instead, now that the gradient is known."""
        rule = self._augmentation
        if rule.looks_at_weights:
            return rule.epsilon_for(epsilon, self._length, self._relative)
        return rule.epsilon_for(epsilon, self._length)

    def _start(self, found: Found, epsilon: float, resolution: float) -> None:
        values = self._values
        found.loss = found.base_loss = values["loss"]
        if not math.isfinite(found.loss) or not values["peak"] <= self._options.limit:
            raise NotFinite(found.loss)
        if found.loss > self._options.loss_limit:
            raise WentAstray(found.loss)
        found.reached = {int(name[8:]): bool(value) for name, value in values.items() if name.startswith("reached/")}
        found.tightened = not values["admitted"]
        self._resolution = abs(found.loss) * resolution
        found.first_epsilon = epsilon
        if self._on_first is not None:
            self._on_first(epsilon)

    def _compare(self, found: Found, trial_loss: float) -> None:
        """Accepts or rejects the candidate, and lets the rule know."""
        self._test(found, trial_loss)
        if not found.accepted and found.tightened and not self._projected:
            # No admissible point need be as good as the inadmissible w: its projection is the measure.
            self._projected = True
            self._compare_with_projection(found, trial_loss)
        trial = Trial(
            found.epsilon,
            found.change,
            float(found.candidate.slope),
            float(found.candidate.tau),
            found.accepted,
            found.tightened,
            self._resolution,
            self._length,
            self._relative,
            self._options.progress,
        )
        # The untested steps before it would have shown much the same.
        for _ in range(self._options.stands_for if found.accepted and found.trials == 1 else 1):
            self._augmentation.observe(trial)

    def _compare_with_projection(self, found: Found, trial_loss: float) -> None:
        proposal = self._iteration.values()
        self._iteration.project_()
        base_loss = self._trial()
        self._iteration.put_(proposal)
        values = self._reduction.read({"base": base_loss, **self._iteration.measure().scalars()})
        found.base_loss, found.candidate = values["base"], Candidate.read_from(values)
        self._test(found, trial_loss)

    def _test(self, found: Found, trial_loss: float) -> None:
        found.change = loss_change(trial_loss, found.base_loss)
        found.accepted = not found.candidate.was_thrown_away and accepts(
            found.change, found.candidate, self._options.eta, self._resolution
        )


def accepts(change: float, candidate: Candidate, eta: float, resolution: float) -> bool:
    """The test J_B(û) − J_B(w) ≤ −ητ of method §2 step 4, an Armijo condition in τ instead of the slope.

    Args:
        change: L_B(û) − L_B(w).
        candidate: û, in numbers.
        eta: η.
        resolution: Absolute rounding error of the loss.
    """
    required = eta * float(candidate.tau)
    if abs(change) <= resolution:
        # Below the rounding error of the loss both sides count as zero.
        change, required = 0.0, 0.0 if required <= resolution else required
    return change + candidate.penalty_change <= -required


def loss_change(after: float, before: float) -> float:
    """L_B(û) − L_B(w), +∞ (a rejection) if L_B(û) is not finite."""
    if not math.isfinite(after):
        return math.inf
    # A w without a finite loss can only be the projection onto a tightened constraint: anything is better.
    return after - before if math.isfinite(before) else -math.inf

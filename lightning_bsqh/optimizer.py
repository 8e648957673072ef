"""One iteration of the batch sequential quadratic Hamiltonian method (method §2)."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh._validation import choice, integer, number, shown
from lightning_bsqh.method.augmentation import Augmentation, Curvature, Trial
from lightning_bsqh.method.candidate import Candidate, LayerTerms
from lightning_bsqh.method.demand import Demand
from lightning_bsqh.method.gauss_seidel import GaussSeidel
from lightning_bsqh.method.iteration import Iteration
from lightning_bsqh.method.metric import make_metric
from lightning_bsqh.method.report import LayerReport, StepReport
from lightning_bsqh.method.safeguard import TrueHamiltonian
from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.network.layers import Layer, LayerChoice, acts_on_nothing, find_layers
from lightning_bsqh.network.roles import role_of
from lightning_bsqh.regularizers import L0, ByName, Cardinality, MetricWeight, Regularizer
from lightning_bsqh.regularizers.by_name import bind
from lightning_bsqh.sweeps.base import Sweeps
from lightning_bsqh.sweeps.closure import ClosureSweeps
from lightning_bsqh.sweeps.closure_full_batch import ClosureFullBatch
from lightning_bsqh.sweeps.full_batch_options import make_full_batch


class BSQHOptimizer(torch.optim.Optimizer):
    """Trains by the maximum principle instead of by a learning rate (method §2, §7).

    Every layer gets one parameter group with its ``name`` and an ``lr`` that shows 1/(2ε), the
    length of the step û = w + G/(2εD) before regularisation.

    Args:
        params: A module (best: its buffers and metrics are then safe from trials), or what
            ``torch.optim`` takes: tensors, named tensors, or groups as dicts with ``params`` and ``name``.
        regularizer: R with its factor; or several by name patterns as in ``regularize``, such as
            ``{"conv*": GroupL0(rho=1e-3), "fc*": Cardinality()}``: R then acts on what the patterns claim and on
            nothing else. None takes ``Cardinality()`` if ``total_steps`` is known and ``L0()`` if not.
        augmentation: The rule for ε. None takes ``Curvature()``. Copied, so that it can be used again.
        epsilon: Start of the default rule; not together with ``augmentation``.
        metric: ``"rms"`` or ``"euclidean"`` (method §4).
        eta: η ≥ 0 of the acceptance test J_B(û) − J_B(w) ≤ −ητ.
        max_trials: Largest number of trial sweeps per iteration, at least 1.
        regularize: Name patterns of what R acts on, see :func:`~lightning_bsqh.network.layers.find_layers`; not
            together with a ``regularizer`` by patterns.
        total_steps: Length of the training in iterations, for schedules and ramps; None if unknown.
        layers: Which modules are the layers, see :func:`~lightning_bsqh.network.layers.find_layers`.
        sweep: ``"jacobi"`` updates all layers from the same states; ``"gauss-seidel"`` one after the other inside
            the trial sweep (method §5).
        batch_mode: ``"mini"``, one iteration per batch, or ``"full"``, one iteration on the whole data in
            micro-batches (method §5).
        kappa: κ ≥ 0 of full-batch mode: :attr:`converged` when an accepted τ is less.
        max_iterations: Full-batch mode: :attr:`finished` after so many iterations; also ``total_steps``, if that
            is None. None for no limit.
        count_samples: Full-batch mode: number of samples in a micro-batch, by which its mean loss is weighted. None
            takes the first dimension of its first tensor.
        reuse: Full-batch mode: whether a sweep that is known is used again where data and module are the same.
            Turn it off if the loss depends on something that neither shows, such as the number of the epoch.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of its range, nothing is there to train, or a pattern matches nothing or
            what another one claims.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        *,
        regularizer: Regularizer | Mapping[str, Regularizer] | None = None,
        augmentation: Augmentation | None = None,
        epsilon: float | None = None,
        metric: str = "rms",
        eta: float = 1e-4,
        max_trials: int = 6,
        regularize: Sequence[str] | None = None,
        total_steps: int | None = None,
        layers: LayerChoice = "leaf",
        sweep: str = "jacobi",
        batch_mode: str = "mini",
        kappa: float = 1e-9,
        max_iterations: int | None = None,
        count_samples: Callable[[Any], int] | None = None,
        reuse: bool = True,
    ) -> None:
        #: The options of full-batch mode, None in mini-batch mode.
        self.full_batch = make_full_batch(batch_mode, kappa, max_iterations, count_samples, reuse)
        total_steps = max_iterations if total_steps is None else total_steps
        self.eta = number("eta", eta, low=0.0)
        self.max_trials = integer("max_trials", max_trials, low=1)
        self.total_steps = None if total_steps is None else integer("total_steps", total_steps, low=1)
        self.metric = make_metric(metric)
        self.augmentation = make_augmentation(augmentation, epsilon)
        self.augmentation.prepare(self.metric.default_epsilon, self.metric.default_floor)
        #: Whether the regulariser was left open; then it depends on whether the length is known.
        self.has_default_regularizer = regularizer is None
        if regularizer is None:
            regularizer = L0() if total_steps is None else Cardinality()
        #: Number of iterations that changed nothing because loss or gradient were not finite.
        self.skipped = 0
        self.last_step: StepReport | None = None
        #: Whether the next iterations also fill :attr:`last_layers`, at some cost.
        self.record_layers = False
        #: What the last iteration did to each layer, by name; None unless it was recorded, or if it was skipped.
        self.last_layers: dict[str, LayerReport] | None = None
        self._step = 0
        self._evaluated = False
        # τ of the last accepted step, for the stopping test.
        self._accepted_tau = math.inf
        self._names: dict[int, str] = {}
        self._regularized: set[int] = set()
        self.sweep = choice("sweep", sweep, ("jacobi", "gauss-seidel"))
        found = find_layers(params, regularize, layers)
        self.regularizer = bind(regularizer, found, regularize)
        nothing = acts_on_nothing(found)
        if nothing is not None:
            warnings.warn(nothing, stacklevel=2)
        self._demand = Demand([n for layer in found for n in layer.parameters if n in layer.regularized])
        groups = []
        for layer in found:
            trained = [p for n, p in layer.parameters.items() if n not in layer.waiting]
            if trained:
                groups.append({"params": trained, "name": layer.name})
            for name, parameter in layer.parameters.items():
                self._names[id(parameter)] = name
                if name in layer.regularized:
                    self._regularized.add(id(parameter))
        # There is neither decay nor momentum, but code that was written for other optimizers may ask.
        shown_to_others = {"weight_decay": 0.0, "momentum": 0.0, "betas": (0.0, 0.999)}
        super().__init__(groups, {"lr": 0.5 / self.augmentation.epsilon, **shown_to_others})
        module = params if isinstance(params, nn.Module) else None
        self._closure_sweeps = ClosureSweeps(self._parameters(), module)
        self._full_batch_sweeps = (
            ClosureFullBatch(self._parameters, module, self.full_batch) if self.full_batch is not None else None
        )
        self._layers = found
        self._checked = [layer for layer in found if layer.can_be_run and not layer.is_affine]
        recorded = self._checked if sweep == "jacobi" else self._layers
        devices = [p.device for p in self._parameters()]
        # Where a layer is affine, gauss-seidel needs no input but that of the trial.
        self._boundaries = Boundaries(recorded, devices, lambda layer: not layer.is_affine) if recorded else None
        self._gauss_seidel: GaussSeidel | None = None
        if sweep == "gauss-seidel":
            if self._boundaries is None or not any(layer.modules for layer in found):
                raise ValueError("sweep='gauss-seidel' needs the network: give the module itself, not its parameters.")
            if self.full_batch is not None:
                raise ValueError(
                    "sweep='gauss-seidel' cannot be used with batch_mode='full', where a layer would be updated before"
                    " the other micro-batches have reached it: use sweep='jacobi', or batch_mode='mini' with all data"
                    " in one batch."
                )
            self.regularizer.check_separable()
            self._gauss_seidel = GaussSeidel([], self._boundaries)

    # ------------------------------------------------------------------ what others may ask

    @property
    def iterations(self) -> int:
        """Number of iterations done, skipped ones included."""
        return self._step

    @property
    def layers(self) -> list[Layer]:
        """The layers λ_l, in the order of the network."""
        return list(self._layers)

    def regularizer_of(self, layer: Layer) -> str:
        """What R is for one layer's regularised weights, as a user would write it."""
        order = [n for other in self.layers for n in other.parameters if n in other.regularized]
        return repr(
            self.regularizer.restricted_to([order.index(n) for n in layer.parameters if n in layer.regularized])
        )

    @property
    def converged(self) -> bool:
        """Full-batch mode: whether τ of the last accepted step was less than κ, with all constraints met in full."""
        # As long as a ramp tightens, a short step does not mean that the training is over.
        return self.full_batch is not None and self._accepted_tau < self.full_batch.kappa and self.meets_constraint()

    @property
    def finished(self) -> bool:
        """Whether to stop: converged, or ``max_iterations`` done (full-batch mode)."""
        limit = None if self.full_batch is None else self.full_batch.max_iterations
        return self.converged or (limit is not None and self._step >= limit)

    def parameter_name(self, parameter: Tensor) -> str:
        """The full name of a parameter, such as ``"conv1.weight"``."""
        return self._names[id(parameter)]

    def regularized_weights(self) -> dict[str, list[Tensor]]:
        """The tensors that R acts on, by layer; layers without any are left out."""
        layers: dict[str, list[Tensor]] = {}
        for group in self.param_groups:
            weights = [p for p in group["params"] if id(p) in self._regularized and p.requires_grad]
            if weights:
                layers.setdefault(group["name"], []).extend(weights)
        return layers

    def sparsity(self) -> float:
        """Share of exact zeros among the regularised weights; 0 if there are none."""
        weights = [w for layer in self.regularized_weights().values() for w in layer]
        total = sum(w.numel() for w in weights)
        return 1.0 - sum(int(torch.count_nonzero(w)) for w in weights) / total if total else 0.0

    def meets_constraint(self) -> bool:
        """Whether the weights satisfy the regulariser's constraint in full, as at the end of its ramp."""
        weights = [w for layer in self.regularized_weights().values() for w in layer]
        return self._demand.in_full(self.regularizer, [self._names[id(w)] for w in weights]).admits(weights)

    def metric_weights(self) -> dict[str, MetricWeight]:
        """The metric D as the last iteration left it, by the parameters' full names."""
        parameters = self._active()
        return dict(zip(map(self.parameter_name, parameters), self._metric_of(parameters), strict=True))

    def set_total_steps(self, total_steps: int) -> None:
        """Tells the length of the training when it becomes known only after construction.

        Args:
            total_steps: Length in iterations, at least 1.
        """
        before, self.total_steps = self.total_steps, integer("total_steps", total_steps, low=1)
        self._demand.lengthen(self._step, before, total_steps)
        self.expect_length(True)

    def expect_length(self, known: bool) -> None:
        """Chooses the default regularizer by whether the length is known or will be; one given by the user stays."""
        if self.has_default_regularizer:
            self.regularizer = Cardinality() if known else L0()

    def check_ready(self) -> None:
        """Raises ValueError if an iteration lacks something that no option's own check can tell."""
        if self.regularizer.needs_total_steps and self.total_steps is None:
            raise ValueError(
                f"total_steps must be given: the ramp of {self.regularizer!r} is a share of the training, whose length"
                " is not known; pass total_steps (an integer), or a ramp of (0.0, 0.0)."
            )

    # ------------------------------------------------------------------ torch.optim's interface

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        known = {group["name"] for group in self.param_groups}
        param_group.setdefault("name", f"layer{len(known)}")
        while param_group["name"] in known:
            # Callbacks that report by group need every name once.
            param_group["name"] += "'"
        super().add_param_group(param_group)
        for index, parameter in enumerate(self.param_groups[-1]["params"]):
            if id(parameter) not in self._names:
                # Of no layer that is known: the default rule of method §1, except that regularisers by name have
                # claimed theirs and leave all others alone.
                name = self._names[id(parameter)] = f"{param_group['name']}.{index}"
                if role_of(name, parameter).is_weight and not isinstance(self.regularizer, ByName):
                    self._regularized.add(id(parameter))
                    self._demand.add(name)

    @override
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["bsqh"] = {
            "step": self._step,
            "skipped": self.skipped,
            "accepted_tau": self._accepted_tau,
            "augmentation": self.augmentation.state_dict(),
            "total_steps": self.total_steps,
            "demand": self._demand.state_dict(),
        }
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "bsqh" not in state_dict:
            raise ValueError(
                "state_dict is not that of a BSQHOptimizer (it has no entry 'bsqh'): load the model's weights only and"
                " start the optimizer anew."
            )
        own = state_dict["bsqh"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "bsqh"})
        self._step = int(own["step"])
        self.skipped = int(own["skipped"])
        self._accepted_tau = float(own.get("accepted_tau", math.inf))
        self.augmentation.load_state_dict(own["augmentation"])
        self._evaluated = self._step > 0
        if "demand" in own:
            self._demand.load_state_dict(own["demand"])
            planned, length = own["total_steps"], self.total_steps
            self.total_steps = planned
            if length is not None or planned is not None:
                self.set_total_steps(length or planned)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[..., Any] | None = None,
        *,
        batches: Iterable[Any] | None = None,
        sweeps: Sweeps | None = None,
    ) -> Tensor | None:
        """One iteration on one batch; in full-batch mode on the whole data.

        Args:
            closure: Computes and returns the loss L_B; it does not call backward. It is called again for
                every trial. With ``batches`` it gets one of them and returns the mean loss over that one.
            batches: Full-batch mode: the micro-batches, with a length. They are kept until the next step. None if
                the closure, called without an argument, returns the loss over the whole data.
            sweeps: How the sweeps are done; None calls ``closure`` for each of them.

        Returns:
            The loss L_B(w) before the step, detached; None if the sweeps found nothing to do.

        Raises:
            TypeError: If ``batches`` has no length.
            ValueError: If there is no closure, batches are empty or for the other mode, total_steps is missing for a
                ramp, or the first loss is not finite.
        """
        if closure is None:
            raise ValueError("step needs a closure that computes and returns the loss: optimizer.step(closure).")
        self.check_ready()
        sweeps = sweeps or self._own_sweeps(batches)
        sweeps.boundaries = self._boundaries
        sweeps.on_batch(closure)
        loss = sweeps.forward_adjoint()
        if not sweeps.complete:
            return loss
        self.last_layers = None
        value = math.nan if loss is None else float(loss)
        if loss is not None and not math.isfinite(value) and not self._evaluated:
            raise ValueError(
                f"The loss is {value} at the first batch, before any update: check the data and the initial weights."
            )
        self._evaluated = self._evaluated or loss is not None
        if loss is None or not math.isfinite(value) or not self._gradients_are_finite():
            self._skip(value, counted=loss is not None)
        else:
            self._iterate(value, abs(value) * sweeps.resolution(loss), sweeps)
        if self._boundaries is not None:
            self._boundaries.clear()
        self._step += 1
        return loss

    def _own_sweeps(self, batches: Iterable[Any] | None) -> Sweeps:
        if self._full_batch_sweeps is not None:
            self._full_batch_sweeps.hand_over(batches)
            return self._full_batch_sweeps
        if batches is not None:
            raise ValueError("batches is for batch_mode='full': choose that mode, or call step for every batch.")
        return self._closure_sweeps

    # ------------------------------------------------------------------ the iteration

    def _iterate(self, loss: float, resolution: float, sweeps: Sweeps) -> None:
        parameters = self._active()
        names = [self._names[id(p)] for p in parameters if id(p) in self._regularized]
        self._demand.begin(names, self._step, self.total_steps)
        gradients = [self._gradient(p) for p in parameters]
        for p, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                self.metric.update(self.state[p], gradient)
        iteration = Iteration(
            parameters,
            gradients,
            lambda: self._metric_of(parameters),
            self._demand.at(self.regularizer, names, self._step, self.total_steps),
            [i for i, p in enumerate(parameters) if id(p) in self._regularized],
            self._checks(),
        )
        base_loss = loss
        projected = accepted = False
        trials = 0
        least = 0.0
        groups = self._positions() if self.record_layers else None
        if self._gauss_seidel is not None:
            self._gauss_seidel._layers = self._located(self._layers)
        first: dict[str, LayerTerms] = {}
        while not accepted and trials < self.max_trials:
            trials += 1
            epsilon, candidate, trial_loss = self._try(iteration, max(self._epsilon(), least), sweeps)
            # A limit that the step's length sets does not move by itself.
            least = 1.5 * epsilon if epsilon > self._epsilon() else least
            if groups is not None and trials == 1:
                first = iteration.terms(groups, epsilon)
            change = _change(trial_loss, base_loss)
            accepted = self._accepts(change, candidate, resolution)
            if not accepted and iteration.tightened and not projected:
                # No admissible point need be as good as the inadmissible w: its projection is the measure.
                projected = True
                proposal = [p.detach().clone() for p in parameters]
                iteration.project_()
                base_loss = sweeps.trial()
                for p, value in zip(parameters, proposal, strict=True):
                    p.copy_(value)
                candidate = iteration.measure()
                change = _change(trial_loss, base_loss)
                accepted = self._accepts(change, candidate, resolution)
            self.augmentation.observe(
                Trial(epsilon, change, candidate.slope, candidate.tau, accepted, iteration.tightened, resolution)
            )
        if groups is not None:
            last = first if trials == 1 else iteration.terms(groups, epsilon)
            self.last_layers = {
                name: LayerReport(first[name].hamiltonian, first[name].gain, last[name].gain) for name in groups
            }
        if not accepted:
            # A projection whose loss is not finite is no place to stay.
            iteration.restore_(to_start=not math.isfinite(base_loss))
        if not math.isfinite(base_loss):
            change = trial_loss - loss
            base_loss = loss
        self._report(loss, base_loss + iteration.penalty, change, candidate, epsilon, trials, accepted, iteration)

    def _try(self, iteration: Iteration, epsilon: float, sweeps: Sweeps) -> tuple[float, Candidate, float]:
        """Puts û into the parameters and runs a trial sweep; gives its ε, û's difference from w and L_B(û)."""
        if self._gauss_seidel is None:
            candidate = iteration.maximise_(epsilon)
            raised = self.augmentation.epsilon_for(epsilon, iteration.length(candidate))
            if raised > epsilon:
                epsilon, candidate = raised, iteration.maximise_(raised)
            return epsilon, candidate, sweeps.trial()
        with self._gauss_seidel.updating(iteration, epsilon):
            loss = sweeps.trial()
        return epsilon, iteration.measure_layers(), loss

    def _checks(self) -> list[TrueHamiltonian]:
        """The layers whose true K has to be looked at at once, as far as they can be run alone in this iteration."""
        checks = []
        for layer, positions in self._located(self._checked) if self._boundaries is not None else []:
            assert self._boundaries is not None
            calls = len(self._boundaries.calls(layer))
            if calls > 1 or (calls == 1 and self._gauss_seidel is None):
                checks.append(TrueHamiltonian(positions, partial(self._boundaries.alignment, layer)))
        return checks

    def _accepts(self, change: float, candidate: Candidate, resolution: float) -> bool:
        """The test J_B(û) − J_B(w) ≤ −ητ of method §2 step 4, an Armijo condition in τ instead of the slope."""
        required = self.eta * candidate.tau
        if abs(change) <= resolution:
            # Below the rounding error of the loss both sides count as zero.
            change, required = 0.0, 0.0 if required <= resolution else required
        return change + candidate.penalty_change <= -required

    def _report(
        self,
        loss: float,
        before: float,
        change: float,
        candidate: Candidate,
        epsilon: float,
        trials: int,
        accepted: bool,
        iteration: Iteration,
    ) -> None:
        decrease = -(change + candidate.penalty_change) if accepted else 0.0
        self.last_step = StepReport(
            step=self._step,
            loss=loss,
            objective_before=before,
            objective_after=before - decrease,
            loss_decrease=decrease,
            epsilon=epsilon,
            tau=candidate.tau if accepted else 0.0,
            trials=trials,
            accepted=accepted,
            skipped=False,
            tightened=iteration.tightened,
            hamiltonian_gain=candidate.gain(epsilon),
        )
        self._accepted_tau = candidate.tau if accepted else self._accepted_tau
        for group in self.param_groups:
            group["lr"] = 0.5 / epsilon

    def _skip(self, loss: float, counted: bool) -> None:
        self.skipped += int(counted)
        epsilon = self._epsilon()
        self.last_step = StepReport(self._step, loss, loss, loss, 0.0, epsilon, 0.0, 0, False, True, False, 0.0)

    # ------------------------------------------------------------------ small helpers

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _active(self) -> list[Tensor]:
        """Those that are not frozen."""
        return [p for p in self._parameters() if p.requires_grad]

    def _located(self, layers: Sequence[Layer]) -> list[tuple[Layer, list[int]]]:
        """The layers with the positions of their tensors among the active ones."""
        places = {id(p): i for i, p in enumerate(self._active())}
        located = [(layer, [places[id(p)] for p in layer.parameters.values() if id(p) in places]) for layer in layers]
        return [(layer, positions) for layer, positions in located if positions]

    def _metric_of(self, parameters: Sequence[Tensor]) -> list[MetricWeight]:
        """D of all parameters, given in their order."""
        unknown = [not self.state.get(p) for p in parameters]
        contested = self._contested(parameters) if any(unknown) else set()
        return [self.metric.weight(self.state.get(p, {}), p, id(p) in contested) for p in parameters]

    def _contested(self, parameters: Sequence[Tensor]) -> set[int]:
        """The regularised tensors whose weights stand against those of others, by identity."""
        regularized = [id(p) for p in parameters if id(p) in self._regularized]
        whole = self._demand.in_full(self.regularizer, [self._names[each] for each in regularized])
        return {each for i, each in enumerate(regularized) if whole.restricted_to([i]).couples_tensors}

    def _positions(self) -> dict[str, list[int]]:
        """Where each layer's tensors are among all of them."""
        places = {id(p): i for i, p in enumerate(self._active())}
        return {g["name"]: [places[id(p)] for p in g["params"] if id(p) in places] for g in self.param_groups}

    def _epsilon(self) -> float:
        progress = None if self.total_steps is None else min(self._step / self.total_steps, 1.0)
        return self.augmentation.epsilon_at(progress)

    @staticmethod
    def _gradient(parameter: Tensor) -> Tensor | None:
        gradient = parameter.grad if parameter.requires_grad else None
        return gradient.to_dense() if gradient is not None and gradient.layout != torch.strided else gradient

    def _gradients_are_finite(self) -> bool:
        # A sum is not finite if an entry is not, and the quickest way to look at them all.
        sums = [g.sum() for p in self._parameters() if (g := self._gradient(p)) is not None]
        return not sums or math.isfinite(torch.stack([s.to(sums[0].device) for s in sums]).sum().item())


def _change(after: float, before: float) -> float:
    """L_B(û) − L_B(w), +∞ (a rejection) if L_B(û) is not finite."""
    if not math.isfinite(after):
        return math.inf
    # A w without a finite loss can only be the projection onto a tightened constraint: anything is better.
    return after - before if math.isfinite(before) else -math.inf


def make_augmentation(augmentation: Augmentation | None, epsilon: float | None) -> Augmentation:
    """The rule for ε from the two options that can name it; a copy of the user's own.

    Raises:
        TypeError: If ``augmentation`` is no rule.
        ValueError: If both are given, or ``epsilon`` is out of its range.
    """
    if augmentation is None:
        return Curvature() if epsilon is None else Curvature(epsilon=epsilon)
    if epsilon is not None:
        raise ValueError(
            f"epsilon={shown(epsilon)} is short for the default rule's start: give it to the rule,"
            f" {type(augmentation).__name__}(epsilon={shown(epsilon)}), instead of beside augmentation."
        )
    if not isinstance(augmentation, Augmentation):
        raise TypeError(f"augmentation must be a rule such as Backtracking(), got {shown(augmentation)}.")
    return copy.deepcopy(augmentation)

"""BSQHOptimizer: the face that torch.optim knows (method §2, §7)."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh._validation import integer
from lightning_bsqh.method.augmentation import Augmentation
from lightning_bsqh.method.demand import Demand
from lightning_bsqh.method.metric import make_metric
from lightning_bsqh.method.reduction import Reduction
from lightning_bsqh.method.report import LayerReport, StepReport
from lightning_bsqh.method.search import Found, NotFinite, SearchOptions
from lightning_bsqh.method.stall import Stalled, StallWatch
from lightning_bsqh.method.stepper import Stepper, Trained, contested
from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.network.layers import Layer, LayerChoice, acts_on_nothing, find_layers
from lightning_bsqh.network.roles import role_of
from lightning_bsqh.optimizer_state import FORMAT, check_state
from lightning_bsqh.options import BSQHOptions
from lightning_bsqh.regularizers import L0, ByName, Cardinality, MetricWeight, Regularizer
from lightning_bsqh.regularizers.by_name import bind
from lightning_bsqh.sweeps.base import AdjointPass, Sweeps
from lightning_bsqh.sweeps.closure import ClosureSweeps
from lightning_bsqh.sweeps.closure_full_batch import ClosureFullBatch
from lightning_bsqh.sweeps.full_batch_options import FullBatch


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
        on_stall: What happens when 20 batches in a row were skipped or rejected: ``"warn"``, once, with losses, ε and
            what to try; or ``"raise"``, which ends the training with
            :class:`~lightning_bsqh.method.stall.Stalled` and leaves the last good weights.

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
        on_stall: str = "warn",
    ) -> None:
        options = BSQHOptions(
            regularizer=regularizer,
            augmentation=augmentation,
            epsilon=epsilon,
            metric=metric,
            eta=eta,
            max_trials=max_trials,
            regularize=regularize,
            total_steps=total_steps,
            layers=layers,
            sweep=sweep,
            batch_mode=batch_mode,
            kappa=kappa,
            max_iterations=max_iterations,
            count_samples=count_samples,
            reuse=reuse,
            on_stall=on_stall,
        )
        #: What the user chose, checked.
        self.options = options
        self.eta, self.max_trials, self.sweep = options.eta, options.max_trials, options.sweep
        self.total_steps = options.length
        self.augmentation = options.make_augmentation()
        #: Number of iterations that changed nothing because loss or gradient were not finite.
        self.skipped = 0
        #: Number of iterations that took a step.
        self.accepted = 0
        self.last_step: StepReport | None = None
        self._stall = StallWatch()
        #: Whether the next iterations also fill :attr:`last_layers`, at some cost.
        self.record_layers = False
        #: What the last iteration did to each layer, by name; None unless it was recorded, or if it was skipped.
        self.last_layers: dict[str, LayerReport] | None = None
        self._step = 0
        self._evaluated = False
        # τ of the last accepted step, for the stopping test.
        self._accepted_tau = math.inf
        # Full names of the parameters, group by group, and the parameters that they are of.
        self._names: list[list[str]] = []
        self._named: list[list[Tensor]] = []
        self._regularized: set[str] = set()
        self._layers = find_layers(params, regularize, layers)
        _refuse_half_precision(self._layers)
        nothing = acts_on_nothing(self._layers)
        if nothing is not None:
            warnings.warn(nothing, stacklevel=2)
        self.regularizer = self._first_regularizer(options)
        self._metric = make_metric(metric)
        self._stepper = Stepper(self._layers, self._metric, sweep, Reduction())
        if sweep == "gauss-seidel":
            self.regularizer.check_separable()
        self._module = params if isinstance(params, nn.Module) else None
        self._own: Sweeps | None = None
        for layer in self._layers:
            self._regularized |= layer.regularized
        # Also says which of them wait until they are unfrozen.
        self._demand = Demand([n for layer in self._layers for n in layer.parameters if n in layer.regularized])
        # There is neither decay nor momentum, but code that was written for other optimizers may ask.
        shown_to_others = {"weight_decay": 0.0, "momentum": 0.0, "betas": (0.0, 0.999)}
        super().__init__(self._first_groups(), {"lr": 0.5 / self.augmentation.epsilon, **shown_to_others})

    def _first_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = []
        for layer in self._layers:
            trained = [p for n, p in layer.parameters.items() if n not in layer.waiting]
            if trained:
                groups.append({"params": trained, "name": layer.name})
        return groups

    def _first_regularizer(self, options: BSQHOptions) -> Regularizer:
        given = options.regularizer
        if given is None:
            given = Cardinality() if self.total_steps is not None else L0()
        return bind(given, self._layers, options.regularize)

    # ------------------------------------------------------------------ what others may ask

    @property
    def iterations(self) -> int:
        """Number of iterations done, skipped ones included."""
        return self._step

    @property
    def layers(self) -> list[Layer]:
        """The layers λ_l, in the order of the network."""
        return list(self._layers)

    @property
    def full_batch(self) -> FullBatch | None:
        """The options of full-batch mode, None in mini-batch mode."""
        return self.options.full_batch

    @property
    def has_default_regularizer(self) -> bool:
        """Whether the regularizer was left open; then it depends on whether the length is known."""
        return self.options.regularizer is None

    def regularizer_of(self, layer: Layer) -> str:
        """What R is for one layer's regularised weights, as a user would write it."""
        order = [n for other in self._layers for n in other.parameters if n in other.regularized]
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

    def named_parameters(self) -> dict[str, Tensor]:
        """All parameters that are trained, by their full names, such as ``"conv1.weight"``."""
        return {
            name: parameter
            for group, names in self._named_groups()
            for name, parameter in zip(names, group["params"], strict=True)
        }

    def parameter_name(self, parameter: Tensor) -> str:
        """The full name of a parameter.

        Raises:
            KeyError: If it is not one of those that are trained.
        """
        for name, other in self.named_parameters().items():
            if other is parameter:
                return name
        raise KeyError(f"a tensor of shape {tuple(parameter.shape)} is none of the optimizer's parameters")

    def regularized_weights(self) -> dict[str, list[Tensor]]:
        """The tensors that R acts on, by layer; layers without any are left out."""
        layers: dict[str, list[Tensor]] = {}
        for group, names in self._named_groups():
            named = zip(group["params"], names, strict=True)
            weights = [p for p, name in named if name in self._regularized and p.requires_grad]
            if weights:
                layers.setdefault(group["name"], []).extend(weights)
        return layers

    def sparsity(self) -> float:
        """Share of exact zeros among the regularised weights; 0 if there are none."""
        weights = [w for layer in self.regularized_weights().values() for w in layer]
        total = sum(w.numel() for w in weights)
        if not total:
            return 0.0
        counts = [torch.count_nonzero(w) for w in weights]
        return 1.0 - int(torch.stack([c.to(counts[0].device) for c in counts]).sum()) / total

    def meets_constraint(self) -> bool:
        """Whether the weights satisfy the regularizer's constraint in full, as at the end of its ramp."""
        weights = {n: p.detach() for n, p in self._moving().items() if n in self._regularized}
        return bool(self._demand.in_full(self.regularizer, list(weights)).admits(list(weights.values())))

    def metric_weights(self) -> dict[str, MetricWeight]:
        """The metric D as the last iteration left it, by the parameters' full names."""
        named = self._moving()
        regularized = {name: i for i, name in enumerate(named) if name in self._regularized}
        low = contested(self._demand.in_full(self.regularizer, list(regularized)), list(regularized.values()))
        return {
            name: self._metric.remembered(self.state.get(p, {}), p, i in low)
            for i, (name, p) in enumerate(named.items())
        }

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
        param_group = self._without_known(param_group)
        if not param_group["params"]:
            # They have been listed from the start, and are trained as soon as they require gradients.
            return
        param_group.setdefault("name", f"layer{len(known)}")
        while param_group["name"] in known:
            # Callbacks that report by group need every name once.
            param_group["name"] += "'"
        super().add_param_group(param_group)
        self._named_groups()

    def _named_groups(self) -> list[tuple[dict[str, Any], list[str]]]:
        """The groups as they are now; Lightning's callbacks for fine-tuning replace all of them at once."""
        now = [group["params"] for group in self.param_groups]
        if len(now) != len(self._named) or any(
            len(a) != len(b) or any(p is not q for p, q in zip(a, b, strict=True))
            for a, b in zip(now, self._named, strict=True)
        ):
            self._names = [self._names_of(group) for group in self.param_groups]
            self._named = [list(params) for params in now]
        return list(zip(self.param_groups, self._names, strict=True))

    def _without_known(self, group: dict[str, Any]) -> dict[str, Any]:
        given = group["params"]
        members = [given] if isinstance(given, Tensor) else list(given)
        known = {id(p) for p in self._all()}
        return {**group, "params": [m for m in members if id(m[1] if isinstance(m, tuple) else m) not in known]}

    def _names_of(self, group: dict[str, Any]) -> list[str]:
        """The full names of a group's parameters, known from the layers or made from that of the group."""
        names = []
        for index, parameter in enumerate(group["params"]):
            own = [n for layer in self._layers for n, p in layer.parameters.items() if p is parameter]
            if not own:
                # Of no layer that is known: the default rule of method §1, except that regularizers by name have
                # claimed theirs and leave all others alone.
                own = [f"{group['name']}.{index}"]
                if role_of(own[0], parameter).is_weight and not isinstance(self.regularizer, ByName):
                    self._regularized.add(own[0])
                    self._demand.add(own[0])
            names += own
        return names

    @override
    def __getstate__(self) -> dict[str, Any]:
        # Torch's own keeps groups and state only; hooks and sweeps belong to this object and not to a copy.
        left_out = ("_optimizer_", "_zero_grad_", "_hook_", "_own", "step", "profile_hook")
        return {name: value for name, value in vars(self).items() if not name.startswith(left_out)} | {"_own": None}

    @override
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["bsqh"] = {
            "format": FORMAT,
            "metric": self.options.metric,
            "rule": type(self.augmentation).__name__,
            "step": self._step,
            "skipped": self.skipped,
            "accepted": self.accepted,
            "accepted_tau": self._accepted_tau,
            "augmentation": self.augmentation.state_dict(),
            "total_steps": self.total_steps,
            "demand": self._demand.state_dict(),
        }
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rule = check_state(state_dict, self.param_groups, self.options.metric, self.augmentation)
        own = state_dict["bsqh"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "bsqh"})
        self._stepper.forget()
        self._step = int(own["step"])
        self.skipped = int(own["skipped"])
        self.accepted = int(own.get("accepted", 0))
        self._accepted_tau = float(own.get("accepted_tau", math.inf))
        self.augmentation = rule
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
        if closure is None and sweeps is None:
            raise ValueError("step needs a closure that computes and returns the loss: optimizer.step(closure).")
        self.check_ready()
        sweeps = sweeps or self._own_sweeps(batches)
        boundaries = self._stepper.boundaries
        try:
            adjoint = sweeps.forward_adjoint(closure, boundaries)  # type: ignore[arg-type]
            if adjoint.is_complete:
                self._iterate(adjoint)
        finally:
            if boundaries is not None and (sys.exc_info()[0] is not None or adjoint.is_complete):
                boundaries.clear()
        return adjoint.loss

    @property
    def boundaries(self) -> Boundaries | None:
        """Records states and adjoints during the forward sweep; None if no layer needs them."""
        return self._stepper.boundaries

    def _own_sweeps(self, batches: Iterable[Any] | None) -> Sweeps:
        if batches is not None and self.full_batch is None:
            raise ValueError("batches is for batch_mode='full': choose that mode, or call step for every batch.")
        if self._own is None:
            self._own = (
                ClosureSweeps(self._all, self._module)
                if self.full_batch is None
                else ClosureFullBatch(self._all, self._module, self.full_batch)
            )
        if isinstance(self._own, ClosureFullBatch):
            self._own.hand_over(batches)
        return self._own

    # ------------------------------------------------------------------ the iteration

    def _iterate(self, adjoint: AdjointPass) -> None:
        self.last_layers = None
        if adjoint.loss is None:
            self._skip(math.nan, counted=False)
            return
        demand = self._demand.state_dict()
        try:
            found, layers = self._search(adjoint)
        except BaseException as error:
            self._demand.load_state_dict(demand)
            if not isinstance(error, NotFinite):
                raise
            if not self._evaluated and not math.isfinite(error.loss):
                raise ValueError(
                    f"The loss is {error.loss} at the first batch, before any update: check the data and the initial"
                    " weights."
                ) from None
            adjoint.undo()
            self._skip(error.loss, counted=True)
            return
        self._evaluated = True
        self.last_layers = layers
        self._report(found)

    def _search(self, adjoint: AdjointPass) -> tuple[Found, dict[str, LayerReport] | None]:
        moving = self._moving()
        names = [name for name in moving if name in self._regularized]
        self._demand.begin(names, self._step, self.total_steps)
        return self._stepper.step(
            adjoint,
            Trained(moving, [self.state[p] for p in moving.values()], self._regularized),
            self._demand.at(self.regularizer, names, self._step, self.total_steps),
            self.augmentation,
            self._search_options(),
            self.record_layers,
        )

    def _moving(self) -> dict[str, Tensor]:
        """What moves in this iteration, by name: frozen parameters do not."""
        return {name: p for name, p in self.named_parameters().items() if p.requires_grad}

    def _search_options(self) -> SearchOptions:
        progress = None if self.total_steps is None else min(self._step / self.total_steps, 1.0)
        dtype = self.param_groups[0]["params"][0].dtype
        return SearchOptions(self.eta, self.max_trials, progress, self._metric.largest_gradient(dtype))

    def _report(self, found: Found) -> None:
        tau = float(found.candidate.tau)
        self.last_step = StepReport(
            step=self._step,
            loss=found.loss,
            objective_before=found.objective_before,
            objective_after=found.objective_before - found.decrease,
            loss_decrease=found.decrease,
            epsilon=found.epsilon,
            tau=tau if found.accepted else 0.0,
            trials=found.trials,
            accepted=found.accepted,
            skipped=False,
            tightened=found.tightened,
            hamiltonian_gain=found.candidate.gain(found.epsilon),
        )
        self.accepted += int(found.accepted)
        self._accepted_tau = tau if found.accepted else self._accepted_tau
        for group in self.param_groups:
            group["lr"] = 0.5 / found.epsilon
        self._step += 1
        self._watch(self.last_step)

    def _skip(self, loss: float, counted: bool) -> None:
        self.skipped += int(counted)
        self._evaluated = self._evaluated or counted
        epsilon = self.augmentation.epsilon_at(self._search_options().progress)
        self.last_step = StepReport(self._step, loss, loss, loss, 0.0, epsilon, 0.0, 0, False, True, False, 0.0)
        self._step += 1
        if counted:
            self._watch(self.last_step)

    def _watch(self, report: StepReport) -> None:
        message = self._stall.observe(report)
        if message is not None and self.options.on_stall == "raise":
            raise Stalled(message)
        if message is not None:
            warnings.warn(message, stacklevel=4)

    def _all(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


def _refuse_half_precision(layers: Sequence[Layer]) -> None:
    for layer in layers:
        for name, parameter in layer.parameters.items():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                raise TypeError(
                    f"params: {name} has dtype {parameter.dtype}, in which the change of a weight or of the loss over"
                    " a step is rounded away: keep parameters in float32 and compute in half precision with"
                    " torch.autocast (in Lightning precision='bf16-mixed')."
                )

"""BSQHOptimizer: the face that torch.optim knows (method §2, §7)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh.make_training import make_training
from lightning_bsqh.method.augmentation import Augmentation
from lightning_bsqh.method.device_refusals import refusal
from lightning_bsqh.method.reduction import Reduction
from lightning_bsqh.method.regularization import Regularization
from lightning_bsqh.method.stall import Stalled
from lightning_bsqh.method.stepper import contested
from lightning_bsqh.method.training import Inputs
from lightning_bsqh.method.training_view import TrainingView
from lightning_bsqh.network.layers import Layer, LayerChoice, acts_on_nothing, find_layers
from lightning_bsqh.network.packing import check_dtypes
from lightning_bsqh.network.sharding import Sharding
from lightning_bsqh.optimizer_rows import Rows, SomeRows, share_of_zeros
from lightning_bsqh.optimizer_state import FORMAT, check_state
from lightning_bsqh.options import BSQHOptions
from lightning_bsqh.parameter_names import ParameterNames
from lightning_bsqh.regularizers import MetricWeight, Regularizer
from lightning_bsqh.sweeps.base import AdjointPass, Sweeps
from lightning_bsqh.sweeps.full_batch_options import FullBatch
from lightning_bsqh.sweeps.own import OwnSweeps


class BSQHOptimizer(TrainingView, torch.optim.Optimizer):
    """Trains by the maximum principle instead of by a learning rate (method §2, §7).

    Every layer gets one parameter group with its ``name`` and an ``lr`` that shows 1/(2ε), the
    length of the step û = w + G/(2εD) before regularization.

    Args:
        params: A module (best: its buffers and metrics are then safe from trials), or what
            ``torch.optim`` takes: tensors, named tensors, or groups as dicts with ``params`` and ``name``.
        regularizer: R with its factor; or several by name patterns as in ``regularize``, such as
            ``{"conv*": GroupL0(rho=1e-3), "fc*": Cardinality()}``: R then acts on what the patterns claim and on
            nothing else. None takes ``Cardinality()`` if ``total_steps`` is known and ``L0()`` if not.
        augmentation: The rule for ε. None takes ``Curvature()``. Copied, so that it can be used again.
        epsilon: Start of the default rule; not together with ``augmentation``.
        metric: ``"rms"`` or ``"euclidean"`` (method §4).
        averaging: The share of the past, in [0, 1), in Ḡ ← share · Ḡ + (1 − share) · G, along which candidates are made
            (method §4). None takes 0.8 with ``"rms"`` and 0 else; 0 in full-batch mode and in gauss-seidel sweeps.
        eta: η ≥ 0 of the acceptance test J_B(û) − J_B(w) ≤ −ητ.
        max_trials: Largest number of trial sweeps per iteration, at least 1.
        trial_every: 1 tests every step by a trial sweep. A larger integer, or ``"auto"`` for 8, tests more rarely in
            calm, up to that number of batches apart (method §2): a decrease is then promised for tested batches
            only. ``"auto"`` tests every step in full-batch mode and in gauss-seidel sweeps.
        decide: ``"host"`` looks at every trial before it goes on. With ``"device"`` û or w is chosen on the device,
            with one trial per batch, and the host does not wait (method §2) unless it asks, for :attr:`last_step` say.
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
        averaging: float | None = None,
        eta: float = 1e-4,
        max_trials: int = 6,
        trial_every: int | str = 1,
        decide: str = "host",
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
        options = BSQHOptions.among(locals())
        #: What the user chose, checked.
        self.options = options
        self.eta, self.max_trials, self.sweep = options.eta, options.max_trials, options.sweep
        #: Whether the next iterations also fill :attr:`last_layers`, at some cost.
        self.record_layers = False
        self._layers = find_layers(params, regularize, layers)
        trained = {n: p for layer in self._layers for n, p in layer.trained.items()}
        check_dtypes(trained)
        self._rows = Rows(trained)
        if (nothing := acts_on_nothing(self._layers)) is not None:
            warnings.warn(nothing, stacklevel=2)
        regularization = Regularization(options.regularizer, self._layers, regularize, options.length)
        self._training = make_training(self._layers, regularization, options)
        if sweep == "gauss-seidel":
            regularization.regularizer.check_separable()
        self._module = params if isinstance(params, nn.Module) else None
        self._own: OwnSweeps | None = None
        self._names = ParameterNames(self._layers, regularization.claims)
        # Not for others to set, but code that was written for other optimizers may ask.
        shown_to_others = {"weight_decay": 0.0, "momentum": 0.0, "betas": (0.0, 0.999)}
        groups = [{"params": layer.given, "name": layer.name} for layer in self._layers if layer.given]
        super().__init__(groups, {"lr": 0.5 / self.augmentation.epsilon, **shown_to_others})

    # ------------------------------------------------------------------ what others may ask

    @property
    def layers(self) -> list[Layer]:
        """The layers λ_l, in the order of the network."""
        return list(self._layers)

    @property
    def full_batch(self) -> FullBatch | None:
        """The options of full-batch mode, None in mini-batch mode."""
        return self.options.full_batch

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds the parameters whole; then all have to ask for what is about all weights."""
        return self._rows.are_some

    @property
    def converged(self) -> bool:
        """Full-batch mode: whether τ of the last accepted step was less than κ, with all constraints met in full."""
        # As long as a ramp tightens, a short step does not mean that the training is over.
        tau = self._training.history.accepted_tau
        return self.full_batch is not None and tau < self.full_batch.kappa and self.meets_constraint()

    @property
    def finished(self) -> bool:
        """Whether to stop: converged, or ``max_iterations`` done (full-batch mode)."""
        limit = None if self.full_batch is None else self.full_batch.max_iterations
        return self.converged or (limit is not None and self.iterations >= limit)

    def named_parameters(self) -> dict[str, Tensor]:
        """All parameters that are trained, by their full names, such as ``"conv1.weight"``."""
        return self._names.named(self.param_groups)

    def parameter_name(self, parameter: Tensor) -> str:
        """The full name of a parameter.

        Raises:
            KeyError: If it is not one of those that are trained.
        """
        return self._names.name_of(self.param_groups, parameter)

    def regularized_weights(self) -> dict[str, list[Tensor]]:
        """The tensors that R acts on, by layer; layers without any are left out."""
        return self._names.regularized_by_group(self.param_groups)

    def sparsity(self) -> float:
        """Share of exact zeros among the regularized weights; 0 if there are none."""
        return share_of_zeros([w for layer in self.regularized_weights().values() for w in layer])

    def meets_constraint(self) -> bool:
        """Whether the weights satisfy the regularizer's constraint in full, as at the end of its ramp."""
        return self._rows.is_met(self._training.regularization, self._names.regularized_moving(self.param_groups))

    def metric_weights(self) -> dict[str, MetricWeight]:
        """The metric D as the last iteration left it, by the parameters' full names."""
        self._training.settle()
        named = self._names.moving(self.param_groups)
        regularized = {name: i for i, name in enumerate(named) if name in self._names.regularized}
        low = contested(self._training.regularization.in_full(list(regularized)), list(regularized.values()))
        return {
            name: self._training.metric.remembered(self.state.get(p, {}), p, i in low)
            for i, (name, p) in enumerate(named.items())
        }

    def set_total_steps(self, total_steps: int) -> None:
        """Tells the length of the training when it becomes known only after construction.

        Args:
            total_steps: Length in iterations, at least 1.
        """
        self._training.regularization.lengthen(self.iterations, total_steps)

    def learn_uses(self, uses: Mapping[str, int]) -> None:
        """Tells a regularizer such as ``Budget`` how often the weights are used, which the strategy sees in a forward.

        Args:
            uses: Multiply-adds of one weight for one sample by the parameters' full names, each at least 1.

        Raises:
            ValueError: If a regularized tensor is missing.
        """
        self._training.regularization.learn_uses(uses)

    def expect_length(self, known: bool) -> None:
        """Chooses the default regularizer by whether the length is known or will be; one given by the user stays."""
        self._training.regularization.expect_length(known)

    def check_ready(self) -> None:
        """Raises ValueError if an iteration lacks something that no option's own check can tell."""
        self._rows.check()
        self._training.regularization.check_ready()

    def share(self, reduction: Reduction, sharding: Sharding | None = None) -> None:
        """From now on takes all decisions together with other processes.

        Args:
            reduction: Takes them.
            sharding: Knows which rows of the parameters are here; None if all processes have the same.

        Raises:
            ValueError: If ``decide="device"``.
        """
        if self.options.decide == "device":
            raise ValueError(refusal("several processes", "use devices=1 and num_nodes=1"))
        if sharding is not None:
            self._rows = SomeRows(sharding)
        self._training.stepper.share(reduction)

    # ------------------------------------------------------------------ torch.optim's interface

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        param_group = self._names.without_known(self.param_groups, param_group)
        if not param_group["params"]:
            # They have been listed from the start, and are trained as soon as they require gradients.
            return
        param_group["name"] = self._names.free_name(self.param_groups, param_group)
        super().add_param_group(param_group)
        self._names.by_group(self.param_groups)

    @override
    def __getstate__(self) -> dict[str, Any]:
        # Torch's own keeps groups and state only; hooks and sweeps belong to this object and not to a copy.
        left_out = ("_optimizer_", "_zero_grad_", "_hook_", "_own", "step", "profile_hook")
        return {name: value for name, value in vars(self).items() if not name.startswith(left_out)} | {"_own": None}

    @override
    def state_dict(self) -> dict[str, Any]:
        self._training.settle()
        self._show_rate(self._training.take_epsilon())
        state = self._rows.saved(super().state_dict(), self._all())
        state["bsqh"] = {"format": FORMAT, "metric": self.options.metric, **self._training.state_dict()}
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rule = check_state(state_dict, self.param_groups, self.options.metric, self.augmentation)
        plain = {key: value for key, value in state_dict.items() if key != "bsqh"}
        super().load_state_dict(self._rows.loaded(plain, self._all()))
        self._training.load_state_dict(state_dict["bsqh"], rule)

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
        self.check_ready()
        sweeps = sweeps or self._own_sweeps(batches)
        boundaries, done, stale = self.boundaries, self.iterations, sweeps.starts()
        try:
            adjoint = sweeps.forward_adjoint(closure or _no_closure, boundaries)
            if adjoint.is_complete:
                self._iterate(adjoint)
        except BaseException:
            if self.iterations == done:
                sweeps.take_back(stale)
            raise
        finally:
            if boundaries is not None and (sys.exc_info()[0] is not None or adjoint.is_complete):
                boundaries.clear()
        return adjoint.loss

    def _own_sweeps(self, batches: Iterable[Any] | None) -> Sweeps:
        if self._own is None:
            self._own = OwnSweeps(self._all, self._module, self.full_batch)
        return self._own.on(batches)

    def _iterate(self, adjoint: AdjointPass) -> None:
        moving = self._names.moving(self.param_groups)
        states = [self.state[p] for p in moving.values()]
        trained, moved = self._rows.trained(moving, states, self._names.regularized)
        if moved:
            self._training.stepper.forget()
        with ExitStack() as held:
            inputs = Inputs(adjoint, trained, self.eta, self.max_trials, self.record_layers, held)
            found, stalled = self._training.iterate(inputs)
            self._show_rate(self._training.take_epsilon() if found is None else found.epsilon)
        self._rows.release()
        if stalled is not None and self.options.on_stall == "raise":
            raise Stalled(stalled)
        if stalled is not None:
            warnings.warn(stalled, stacklevel=4)

    def _show_rate(self, epsilon: float | None) -> None:
        if epsilon is not None:
            for group in self.param_groups:
                group["lr"] = 0.5 / epsilon

    def _all(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


def _no_closure(*_: Any) -> NoReturn:
    """Called unless the sweeps have been done before the step, as under a GradScaler."""
    raise ValueError("step needs a closure that computes and returns the loss: optimizer.step(closure).")

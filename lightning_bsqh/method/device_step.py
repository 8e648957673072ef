"""A step that is decided on the device: û or w, as a scalar there says (``decide="device"``, method §2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_bsqh.method.averaging import AveragingOnDevice
from lightning_bsqh.method.candidate import Candidate
from lightning_bsqh.method.device_iteration import DeviceIteration
from lightning_bsqh.method.device_metric import DeviceMetric, metric_on_device
from lightning_bsqh.method.device_reports import Row
from lightning_bsqh.method.device_rule import DeviceRule, DeviceTrial
from lightning_bsqh.method.reduction import stacked
from lightning_bsqh.method.report import LayerReport
from lightning_bsqh.method.search import NotFinite, SearchOptions
from lightning_bsqh.method.stepper import Stepper, contested, dense
from lightning_bsqh.method.trained import Trained
from lightning_bsqh.network.packing import Pack
from lightning_bsqh.network.uninterrupted import uninterrupted
from lightning_bsqh.regularizers import MetricWeight, Regularizer
from lightning_bsqh.sweeps.base import AdjointPass


@dataclass
class Live:
    """What lies on the device between two looks at it.

    Attributes:
        rule: The rule for ε.
        metric: D.
        averaging: Ḡ.
    """

    rule: DeviceRule
    metric: DeviceMetric
    averaging: AveragingOnDevice


@dataclass(frozen=True)
class Decision:
    """How an iteration has ended; scalars on the device.

    Attributes:
        finite: Whether loss and gradient are finite; else the batch is skipped.
        accepted: Whether û is the next iterate.
        memory: What the rule remembers then.
        row: What there is to report.
        layers: What the iteration did to each layer, if that was asked.
    """

    finite: Tensor
    accepted: Tensor
    memory: Tensor
    row: Row
    layers: dict[str, LayerReport] | None


class DeviceStepper(Stepper):
    """A Stepper that can also do without a look at the device."""

    def is_packed(self, trained: Trained) -> bool:
        """Whether the packs of the last step still hold."""
        key = (list(trained.parameters), trained.regularized_positions)
        return self._packed == key and all(pack.is_current() for pack in self._packs)

    def metric_on_device(self, trained: Trained) -> DeviceMetric:
        """D with what is remembered of the parameters, for their present packs."""
        packs = self._packs_of(trained, trained.regularized_positions)
        return metric_on_device(self._metric, packs, trained.states)

    def averaging_on_device(self, trained: Trained) -> AveragingOnDevice:
        """Ḡ with what is remembered of the parameters, for their present packs."""
        packs = self._packs_of(trained, trained.regularized_positions)
        return AveragingOnDevice(self._averaging, packs, trained.states)

    @torch.no_grad()
    def step_on_device(
        self,
        adjoint: AdjointPass,
        trained: Trained,
        regularizer: Regularizer,
        live: Live,
        options: SearchOptions,
        record_layers: bool,
        must_be_finite: bool,
        held: ExitStack,
    ) -> tuple[Row, dict[str, LayerReport] | None]:
        """One iteration; the parameters hold w before, which satisfies the constraint, and the new iterate after it.

        An exception at any point, from the user's code in the trial too, leaves everything as it was.

        Args:
            adjoint: The forward and adjoint sweep at w.
            trained: What moves.
            regularizer: R as it holds in this iteration.
            live: What lies on the device; changed.
            options: What else the decision needs.
            record_layers: Whether to report on every layer, for which the host waits.
            must_be_finite: Whether to look, and to raise NoStep for a batch that is to be skipped.
            held: From where the iteration cannot be taken back any more until this is closed, interrupts wait.

        Returns:
            What there is to report, and what the iteration did to each layer if that was asked.

        Raises:
            NoStep: If the host knows that loss or gradient are not finite; nothing has changed then.
        """
        iteration = self._make_device_iteration(trained, regularizer, live)
        try:
            decision = self._decide(adjoint, trained, iteration, live.rule, options, record_layers)
            if must_be_finite and not bool(decision.finite):
                assert adjoint.loss is not None
                raise NotFinite(float(adjoint.loss))
            held.enter_context(uninterrupted())
        except BaseException as error:
            with uninterrupted():
                iteration.restore_()
            if isinstance(error, Exception) and (loss := self._not_finite(adjoint, iteration)) is not None:
                # With weights that are not finite a training_step may raise whatever it likes.
                raise loss from None
            raise
        iteration.choose_(decision.accepted)
        adjoint.undo_unless(decision.finite)
        for pack, gradient in zip(iteration.packs, iteration.slopes, strict=True):
            live.metric.commit(pack, gradient, decision.finite)
            live.averaging.commit(pack, gradient, decision.finite, decision.accepted)
        live.rule.memory = decision.memory
        return decision.row, decision.layers

    def _make_device_iteration(self, trained: Trained, regularizer: Regularizer, live: Live) -> DeviceIteration:
        regularized = trained.regularized_positions
        low = contested(regularizer, regularized) if live.metric.has_unreached else set()

        def metric(pack: Pack, gradient: Tensor) -> MetricWeight:
            return live.metric.weight(pack, gradient, low)

        gradients = [dense(p.grad) for p in trained.parameters.values()]
        packs = self._packs_of(trained, regularized)
        parameters = list(trained.parameters.values())
        looks = live.rule.rule.looks_at_weights
        return DeviceIteration(
            parameters,
            gradients,
            metric,
            regularizer,
            regularized,
            packs=packs,
            looks_at_weights=looks,
            mean=live.averaging.direction,
        )

    def _decide(
        self,
        adjoint: AdjointPass,
        trained: Trained,
        iteration: DeviceIteration,
        rule: DeviceRule,
        options: SearchOptions,
        record_layers: bool,
    ) -> Decision:
        assert adjoint.loss is not None
        own = rule.epsilon_at(options.progress)
        candidate, epsilon = iteration.propose_(partial(rule.epsilon_for, own))
        layers = self._layers_of(iteration, trained, float(epsilon)) if record_layers else None
        values = _scalars(epsilon, adjoint.loss, adjoint.trial(), candidate)
        size = values["loss"].abs()
        finite = (size < math.inf) & (iteration.peak <= options.limit)
        resolution = size * adjoint.resolution
        # Neither −∞ nor what is not a number is a decrease.
        change = (values["trial"] - values["loss"]).nan_to_num_(math.inf, math.inf, math.inf)
        accepted = finite & is_decrease(change, values, options.eta, resolution)
        trial = DeviceTrial(
            accepted,
            change,
            values["slope"],
            values["tau"],
            resolution,
            iteration.length,
            iteration.relative,
            progress=options.progress,
        )
        memory = torch.where(finite, rule.observe(trial), rule.memory)
        row = _row(values, {"own": own, "accepted": accepted, "finite": finite})
        return Decision(finite, accepted, memory, row, layers)

    def _layers_of(self, iteration: DeviceIteration, trained: Trained, epsilon: float) -> dict[str, LayerReport]:
        terms = self._terms(iteration, trained.places(self._layers), epsilon)
        return {name: LayerReport(t.hamiltonian, t.gain, t.gain) for name, t in terms.items()}


def is_decrease(change: Tensor, values: Mapping[str, Tensor], eta: float, resolution: Tensor) -> Tensor:
    """The test J_B(û) − J_B(w) ≤ −ητ, as :func:`~lightning_bsqh.method.search.accepts` has it.

    Args:
        change: L_B(û) − L_B(w).
        values: τ and both penalties.
        eta: η.
        resolution: Absolute rounding error of the loss.
    """
    required = eta * values["tau"]
    if "penalty" not in values:
        # Of a decrease that drowns in rounding all that can be asked is that there is no increase which does not.
        return change <= torch.where(required <= resolution, resolution, required.neg())
    is_noise = change.abs() <= resolution
    required = required.masked_fill(is_noise & (required <= resolution), 0.0)
    change = change.masked_fill(is_noise, 0.0).add_(values["penalty"] - values["base_penalty"])
    return change <= required.neg_()


def _scalars(epsilon: Tensor, loss: Tensor, trial: Tensor | float, candidate: Candidate) -> dict[str, Tensor]:
    """What the decision is taken on, in the precision of ε."""
    given = {"epsilon": epsilon, "loss": loss, "trial": trial, **candidate.scalars()}
    del given["excess"], given["proposed"]
    if not isinstance(candidate.penalty, Tensor):
        # A constraint's is zero before and after.
        del given["penalty"], given["base_penalty"]
    full = [v if isinstance(v, Tensor) else torch.full_like(loss, v) for v in given.values()]
    return dict(zip(given, stacked(full).unbind(), strict=True))


def _row(values: Mapping[str, Tensor], decided: Mapping[str, Tensor]) -> Row:
    together = {**values, **decided}
    # All but the two truths are in the same precision, which makes these so, too.
    return Row(list(together), torch.stack(list(together.values())))

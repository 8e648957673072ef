"""A training whose iterations the device decides, and of which the host hears later (``decide="device"``, §2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.method.augmentation import Augmentation
from lightning_bsqh.method.candidate import Candidate
from lightning_bsqh.method.device_refusals import check_devices
from lightning_bsqh.method.device_reports import Reports, apart, read
from lightning_bsqh.method.device_rule import precision_on
from lightning_bsqh.method.device_step import DeviceStepper, Live
from lightning_bsqh.method.history import History
from lightning_bsqh.method.search import Found, loss_change
from lightning_bsqh.method.trained import Trained
from lightning_bsqh.method.training import Inputs, Training
from lightning_bsqh.network.tree import version
from lightning_bsqh.network.uninterrupted import uninterrupted
from lightning_bsqh.regularizers import Regularizer
from lightning_bsqh.regularizers.same import same


@dataclass(frozen=True)
class Satisfied:
    """That the weights satisfied a constraint after an iteration.

    Attributes:
        regularizer: R as it held in the iteration.
        names: The tensors that R acts on.
        versions: Counters of writes to these, after the iteration.
    """

    regularizer: Regularizer
    names: Sequence[str]
    versions: Sequence[int]

    @classmethod
    def by(cls, trained: Trained, regularizer: Regularizer) -> Satisfied:
        """That the present weights satisfy this R."""
        return cls(regularizer, trained.regularized_names, [version(p) for p in _regularized(trained)])

    def holds(self, trained: Trained, regularizer: Regularizer) -> bool:
        """Whether it is the same R and nobody else has written into the weights since."""
        now = Satisfied.by(trained, regularizer)
        return (self.names, self.versions) == (now.names, now.versions) and same(self.regularizer, regularizer)


class DeviceTraining(Training):
    """Decides on the device wherever w satisfies its constraint, and as a Training where that has just been tightened.

    Rule and metric are on the device from the first such iteration on, until somebody asks (:meth:`settle`); then they
    are as those of a Training, and go back to the device with the next one.
    """

    stepper: DeviceStepper

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._reports = Reports()
        self._live: Live | None = None
        self._satisfied: Satisfied | None = None
        self._stalled: str | None = None
        self._epsilon: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        # Copies of parameters count writes anew.
        return {**vars(self), "_satisfied": None}

    @property
    @override
    def iterations(self) -> int:
        return self.history.iterations + len(self._reports)

    @override
    def take_epsilon(self) -> float | None:
        epsilon, self._epsilon = self._epsilon, None
        return epsilon

    @override
    def settle(self) -> None:
        if self._live is None and not len(self._reports):
            return
        with uninterrupted():
            arrived, rows = self._reports.take()
            live, self._live = self._live, None
            vectors = [row.values for row in rows]
            if live is not None:
                vectors += [live.rule.memory, *live.metric.numbers(), *live.averaging.numbers()]
            numbers = iter(read(vectors))
            self._record(arrived + apart(rows, [next(numbers) for row in rows for _ in row.names]))
            if live is not None:
                memory = [next(numbers) for _ in range(len(live.rule.memory))]
                self.augmentation.load_state_dict(live.rule.state_dict(memory))
                live.metric.write_back(numbers)
                live.averaging.write_back(numbers)

    def _record(self, reports: Sequence[Mapping[str, float]]) -> None:
        for numbers in reports:
            self._stalled = record(self.history, numbers) or self._stalled
            self._epsilon = numbers["epsilon"] if numbers["finite"] else self._epsilon

    @override
    def iterate(self, inputs: Inputs) -> tuple[Found | None, str | None]:
        self.last_layers = None
        inputs = replace(inputs, max_trials=1)
        if inputs.adjoint.loss is None:
            self.settle()
            return super().iterate(inputs)
        trained, marks = inputs.trained, self.regularization.marks()
        try:
            regularizer = self.regularization.begin(trained.regularized_names, self.iterations)
            is_free = self._is_satisfied(trained, regularizer)
            if is_free:
                self._iterate_on_device(inputs, regularizer)
            else:
                self.regularization.go_back_to(marks)
        except BaseException as error:
            return None, self._skip(self._no_step(error, inputs, marks).loss, counted=True)
        if is_free:
            return None, self._take_stalled()
        return self._iterate_on_host(inputs, regularizer)

    def _iterate_on_host(self, inputs: Inputs, regularizer: Regularizer) -> tuple[Found | None, str | None]:
        """As a Training does it, with one trial."""
        self.settle()
        found, stalled = super().iterate(inputs)
        if found is not None:
            # What has been heard of by settling is older.
            self._epsilon = None
        admits = found is not None and (found.accepted or not found.tightened)
        self._satisfied = Satisfied.by(inputs.trained, regularizer) if admits else None
        return found, stalled

    def _iterate_on_device(self, inputs: Inputs, regularizer: Regularizer) -> None:
        trained = inputs.trained
        if not self.stepper.is_packed(trained):
            self.settle()
        if self._live is None:
            self._live = self._put_on_device(trained)
        is_first = not self.history.has_begun and not len(self._reports)
        row, layers = self.stepper.step_on_device(
            inputs.adjoint,
            trained,
            regularizer,
            self._live,
            self._options(inputs),
            inputs.record_layers,
            is_first,
            inputs.held,
        )
        self._reports.add(row)
        self._satisfied = Satisfied.by(trained, regularizer)
        self._record(self._reports.arrived())
        if is_first or layers is not None:
            self.settle()
            self.last_layers = None if self.history.last is None or self.history.last.skipped else layers

    def _put_on_device(self, trained: Trained) -> Live:
        check_devices(list(trained.parameters.values()))
        device = next(iter(trained.parameters.values())).device
        rule = self.augmentation.on_device(device, precision_on(device))
        assert rule is not None, "the options have been checked"
        return Live(rule, self.stepper.metric_on_device(trained), self.stepper.averaging_on_device(trained))

    def _is_satisfied(self, trained: Trained, regularizer: Regularizer) -> bool:
        if self._satisfied is not None and self._satisfied.holds(trained, regularizer):
            return True
        with torch.no_grad():
            return bool(regularizer.admits([p.detach() for p in _regularized(trained)]))

    @override
    def _check_first(self, loss: float) -> None:
        # Only then it is known whether there was one before.
        self.settle()
        super()._check_first(loss)

    def _take_stalled(self) -> str | None:
        stalled, self._stalled = self._stalled, None
        return stalled

    @override
    def load_state_dict(self, state: Mapping[str, Any], rule: Augmentation) -> None:
        self._reports.clear()
        self._live = self._satisfied = self._stalled = self._epsilon = None
        super().load_state_dict(state, rule)


def record(history: History, numbers: Mapping[str, float]) -> str | None:
    """Takes note of an iteration of which the host has just heard; gives what to say of a stall."""
    if not numbers["finite"]:
        return history.skip(numbers["loss"], numbers["own"], counted=True)
    given = (numbers.get(name, 0.0) for name in ("slope", "tau", "penalty", "base_penalty"))
    candidate = replace(Candidate(*given), mean_slope=numbers.get("mean_slope"))
    found = Found(
        loss=numbers["loss"],
        base_loss=numbers["loss"],
        change=loss_change(numbers["trial"], numbers["loss"]),
        candidate=candidate,
        epsilon=numbers["epsilon"],
        trials=1,
        accepted=bool(numbers["accepted"]),
    )
    return history.record(found)


def _regularized(trained: Trained) -> list[Tensor]:
    return [p for name, p in trained.parameters.items() if name in trained.regularized]

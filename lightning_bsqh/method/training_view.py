"""What may be asked of a training while it goes on."""

from __future__ import annotations

from lightning_bsqh.method.augmentation import Augmentation
from lightning_bsqh.method.report import LayerReport, StepReport
from lightning_bsqh.method.training import Training
from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.network.layers import Layer
from lightning_bsqh.regularizers import Regularizer


class TrainingView:
    """The questions that need nothing but the training itself."""

    _training: Training

    @property
    def iterations(self) -> int:
        """Number of iterations done, skipped ones included."""
        return self._training.iterations

    @property
    def skipped(self) -> int:
        """Number of iterations that changed nothing because loss or gradient were not finite."""
        self._training.settle()
        return self._training.history.skipped

    @property
    def accepted(self) -> int:
        """Number of iterations that took a step."""
        self._training.settle()
        return self._training.history.accepted

    @property
    def augmentation(self) -> Augmentation:
        """The rule for ε."""
        self._training.settle()
        return self._training.augmentation

    @property
    def last_layers(self) -> dict[str, LayerReport] | None:
        """What the last iteration did to each layer, by name; None unless it was recorded, or if it was skipped."""
        return self._training.last_layers

    @property
    def last_step(self) -> StepReport | None:
        """What the last iteration did; None before the first."""
        self._training.settle()
        return self._training.history.last

    @property
    def arrived_step(self) -> StepReport | None:
        """What the last iteration did of which the host knows; with ``decide="device"`` this does not wait."""
        return self._training.history.last

    @property
    def arrived_skipped(self) -> int:
        """As :attr:`skipped`, as far as the host knows."""
        return self._training.history.skipped

    @property
    def arrived_trials(self) -> tuple[int, int]:
        """Numbers of accepted and rejected trials since this was made, as far as the host knows."""
        return self._training.history.trials

    @property
    def regularizer(self) -> Regularizer:
        """R as it will be at the end of its ramp."""
        return self._training.regularization.regularizer

    @property
    def total_steps(self) -> int | None:
        """Length of the training in iterations, None if unknown."""
        return self._training.regularization.total_steps

    @property
    def boundaries(self) -> Boundaries | None:
        """Records states and adjoints during the forward sweep; None if no layer needs them."""
        return self._training.stepper.boundaries

    @property
    def has_default_regularizer(self) -> bool:
        """Whether the regularizer was left open; then it depends on whether the length is known."""
        return self._training.regularization.is_default

    def regularizer_of(self, layer: Layer) -> str:
        """What R is for one layer's regularized weights, as a user would write it."""
        return self._training.regularization.of(layer)

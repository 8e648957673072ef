"""The metric D of the augmentation term ε‖u − w‖²_D (method §4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import shown
from lightning_bsqh.regularizers.base import MetricWeight


class Metric(ABC):
    """Keeps per-parameter running quantities and turns them into the diagonal D."""

    #: Start of ε that suits the metric, used by the default rule.
    default_epsilon: float
    #: ε below which a step is too long for any network, 0 if the metric cannot tell.
    default_floor: float

    @abstractmethod
    def update(self, state: dict[str, Any], gradient: Tensor) -> None:
        """Takes one G (shape and dtype of the parameter) into the parameter's ``state``, in place."""

    @abstractmethod
    def weight(self, state: dict[str, Any], parameter: Tensor, contested: bool = False) -> MetricWeight:
        """D for one parameter: a new tensor of its shape, or a scalar; positive.

        Args:
            state: What :meth:`update` keeps of it.
            parameter: The parameter.
            contested: Whether its weights stand against those of other parameters, as for the places of Cardinality.
        """


class Euclidean(Metric):
    """D = 1, the plain method."""

    default_epsilon = 5.0
    default_floor = 0.0

    @override
    def update(self, state: dict[str, Any], gradient: Tensor) -> None:
        return

    @override
    def weight(self, state: dict[str, Any], parameter: Tensor, contested: bool = False) -> MetricWeight:
        return 1.0


class RMS(Metric):
    """D_i = √(bias-corrected running mean of G_i²) + tiny: a common length scale for all weights.

    The state per parameter: ``mean_square`` (shape of the parameter) and ``updates`` (an integer), from the first
    gradient on that is not zero. Before it, as in the branches above a layer that starts at zero, there is no scale:
    D = 1, as in the plain method, so that no price takes weights away that have not been tried yet; or tiny where they
    would otherwise take the places of weights that have.
    """

    default_epsilon = 62.5
    # A weight whose gradient is as large as usual moves by 1/(2ε); longer steps than 0.01 may lose what was learnt.
    default_floor = 50.0
    decay = 0.999
    tiny = 1e-8

    @override
    def update(self, state: dict[str, Any], gradient: Tensor) -> None:
        if "mean_square" not in state:
            if not bool(gradient.any()):
                return
            state["mean_square"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
            state["updates"] = 0
        state["mean_square"].mul_(self.decay).addcmul_(gradient, gradient, value=1.0 - self.decay)
        state["updates"] += 1

    @override
    def weight(self, state: dict[str, Any], parameter: Tensor, contested: bool = False) -> MetricWeight:
        if "mean_square" not in state:
            return self.tiny if contested else 1.0
        correction = 1.0 - self.decay ** state["updates"]
        return (state["mean_square"] / correction).sqrt_().add_(self.tiny)


def make_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        ValueError: If there is none.
    """
    metrics: dict[str, type[Metric]] = {"euclidean": Euclidean, "rms": RMS}
    if not isinstance(name, str) or name not in metrics:
        raise ValueError(f"metric must be one of {sorted(metrics)}, got {shown(name)}.")
    return metrics[name]()

"""``precision="16-mixed"``: the adjoint sweep runs scaled, G and the trials do not (method §5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.namespace import Precision
from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.sweeps.base import AdjointPass, Sweeps


def scaler_of(precision: Precision) -> torch.amp.GradScaler | None:
    """The scaler of 16-mixed, None under any other precision."""
    scaler: torch.amp.GradScaler | None = getattr(precision, "scaler", None)
    return scaler


class ScaledSweeps(Sweeps):
    """A forward and adjoint sweep that is done before the optimizer steps, since its gradients have to be unscaled.

    Args:
        sweeps: What does the sweeps.
        boundaries: Records states and adjoints during the forward sweep; None if nobody needs them.
        scale: The factor that the loss is multiplied by before its backward.
    """

    def __init__(self, sweeps: Sweeps, boundaries: Boundaries | None, scale: float) -> None:
        super().__init__(())
        self._sweeps = sweeps
        self._boundaries = boundaries
        self._scale = scale
        self._pass: AdjointPass | None = None
        #: Whether the optimizer has asked for it.
        self.is_used = False

    def run(self, closure: Callable[..., Any]) -> Tensor | None:
        """The sweeps themselves, in place of Lightning's closure."""
        self._pass = self._sweeps.forward_adjoint(closure, self._boundaries)
        if self._boundaries is not None:
            # The adjoints that were recorded are scaled, too, and nobody else unscales them.
            self._boundaries.unscale(self._scale)
        return self._pass.loss

    @override
    def forward_adjoint(self, closure: Callable[..., Any], boundaries: Boundaries | None = None) -> AdjointPass:
        assert self._pass is not None
        self.is_used = True
        return self._pass

    @override
    def trial(self) -> Tensor | float:
        return self._sweeps.trial()


def scaled_step(
    step: Callable[..., Any],
    optimizer: BSQHOptimizer,
    closure: Callable[[], Any],
    sweeps: Sweeps,
    scaler: torch.amp.GradScaler,
) -> Any:
    """One iteration under a scaler.

    Args:
        step: The precision's own step, which unscales, calls the hooks, and steps unless a gradient is infinite.
        optimizer: What steps.
        closure: Lightning's closure.
        sweeps: What does the sweeps.
        scaler: The scaler.

    Returns:
        What the optimizer's step has returned.
    """
    done = ScaledSweeps(sweeps, optimizer.boundaries, scaler.get_scale())
    found = step(lambda: done.run(closure), sweeps=done)
    # The scaler keeps infinite gradients from the optimizer, which has a way of its own to skip and count a batch.
    return found if done.is_used else optimizer.step(sweeps=done)

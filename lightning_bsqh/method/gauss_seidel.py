"""The gauss-seidel sweep: layers updated one after the other inside the trial forward sweep (method §5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_bsqh.method.iteration import Iteration
from lightning_bsqh.method.reduction import Reduction
from lightning_bsqh.method.safeguard import TrueHamiltonian
from lightning_bsqh.network.layer_calls import Boundaries, Recorded
from lightning_bsqh.network.layers import Layer


class GaussSeidel:
    """Gives every layer its û when the trial forward sweep reaches it.

    Its input is then the state that the updated layers below have produced; G_l is evaluated there, with the
    p_{l+1} of the adjoint sweep. The order of the sweep is that in which the network calls its modules, found by
    forward pre-hooks. Layers that are called several times or share their parameters, or are never called as a
    module (or inside compiled code), or hold others that are updated while they run, have no one place in that order:
    they take their û from the jacobi sweep, before the others.

    Args:
        boundaries: Records inputs and adjoints of all layers.
    """

    def __init__(self, boundaries: Boundaries) -> None:
        self._boundaries = boundaries
        #: Joins the G_l of several processes.
        self.reduction = Reduction()

    @contextmanager
    def updating(
        self, iteration: Iteration, epsilon: float, layers: Sequence[tuple[Layer, Sequence[int]]]
    ) -> Iterator[None]:
        """While a trial forward sweep runs inside, the parameters go from w to û, layer by layer.

        Args:
            iteration: Holds w, G, D and R.
            epsilon: The augmentation parameter.
            layers: All layers with the positions of their tensors among the parameters.
        """
        if not any(self._boundaries.calls(layer) for layer, _ in layers):
            raise ValueError(
                "sweep='gauss-seidel' has found no layer that is called as a module outside compiled code, so there is"
                " no order to update them in: use sweep='jacobi'."
            )
        # Also says how a constraint on all layers together is shared out among them.
        iteration.maximise_(epsilon)
        iteration.begin_layers()
        handles = []
        try:
            for layer, positions, call in self._in_order(layers):
                iteration.restore_layer_(positions)
                update = _Update(layer, positions, call, self._boundaries, iteration, epsilon, self.reduction)
                handles.append(call.module.register_forward_pre_hook(update, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _in_order(self, layers: Sequence[tuple[Layer, Sequence[int]]]) -> list[tuple[Layer, Sequence[int], Recorded]]:
        """The layers that have one place in the order of the sweep, and their calls."""
        calls = [self._boundaries.calls(layer) for layer, _ in layers]
        # Called once in every process: then the others have a place for it, too.
        differ = self.reduction.most([float(len(each) != 1) for each in calls])
        called = [
            (layer, positions, each[0])
            for (layer, positions), each, elsewhere in zip(layers, calls, differ, strict=True)
            if not elsewhere
        ]
        modules = {call.module for _, _, call in called}
        return [each for each in called if modules.isdisjoint(list(each[2].module.modules())[1:])]


class _Update:
    """The forward pre-hook of one layer: at the first call puts û_l into the parameters."""

    def __init__(
        self,
        layer: Layer,
        positions: Sequence[int],
        recorded: Recorded,
        boundaries: Boundaries,
        iteration: Iteration,
        epsilon: float,
        reduction: Reduction,
    ) -> None:
        self._reduction = reduction
        self._layer = layer
        self._positions = positions
        self._recorded = recorded
        self._boundaries = boundaries
        self._iteration = iteration
        self._epsilon = epsilon
        self._done = False

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._done:
            return
        # Set first: the layer is run alone in here, which comes by this hook again.
        self._done = True
        with torch.no_grad():
            here = self._boundaries.call_at(self._recorded, args, kwargs)
            gradients = here.gradients_of([self._iteration.parameters[i] for i in self._positions])
            self._reduction.mean_(gradients)
            check = None
            if self._layer.is_safeguarded:
                check = TrueHamiltonian(self._positions, lambda: self._reduction.mean(here.alignment()))
            self._iteration.maximise_layer_(self._positions, gradients, self._epsilon, check)

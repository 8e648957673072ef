"""The gauss-seidel sweep: layers updated one after the other inside the trial forward sweep (method §5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_bsqh.boundaries import Boundaries, Call, detached
from lightning_bsqh.iteration import Iteration
from lightning_bsqh.layers import Layer
from lightning_bsqh.safeguard import Check


class GaussSeidel:
    """Gives every layer its û when the trial forward sweep reaches it.

    Its input is then the state that the updated layers below have produced; G_l is evaluated there, with the
    p_{l+1} of the adjoint sweep. The order of the sweep is that in which the network calls its modules, found by
    forward pre-hooks. A layer that is called several times, or by several modules that share its parameters,
    is updated at its first call, with the inputs of the forward sweep for the later ones. A layer that is never
    called as a module (or inside compiled code) takes its û from the jacobi sweep.

    Args:
        layers: All layers with the positions of their tensors among the parameters.
        boundaries: Records inputs and adjoints of all of them.
    """

    def __init__(self, layers: Sequence[tuple[Layer, Sequence[int]]], boundaries: Boundaries) -> None:
        self._layers = layers
        self._boundaries = boundaries

    @contextmanager
    def updating(self, iteration: Iteration, epsilon: float) -> Iterator[None]:
        """While a trial forward sweep runs inside, the parameters go from w to û, layer by layer.

        Args:
            iteration: Holds w, G, D and R.
            epsilon: The augmentation parameter.
        """
        # Also says how a constraint on all layers together is shared out among them.
        iteration.maximise_(epsilon)
        iteration.begin_layers()
        handles = []
        for layer, positions in self._layers:
            calls = self._boundaries.calls(layer)
            if not calls:
                continue
            iteration.restore_layer_(positions)
            update = _Update(layer, positions, calls, iteration, epsilon)
            handles += [module.register_forward_pre_hook(update, with_kwargs=True) for module in layer.modules]
        if not handles:
            raise ValueError(
                "sweep='gauss-seidel' has found no layer that is called as a module outside compiled code, so there is"
                " no order to update them in: use sweep='jacobi'."
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Update:
    """The forward pre-hook of one layer: at the first call puts û_l into the parameters."""

    def __init__(
        self, layer: Layer, positions: Sequence[int], calls: Sequence[Call], iteration: Iteration, epsilon: float
    ) -> None:
        self._layer = layer
        self._positions = positions
        self._calls = calls
        self._iteration = iteration
        self._epsilon = epsilon
        self._done = False

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._done:
            return
        # Set first: the layer is run alone in here, which comes by this hook again.
        self._done = True
        first = next((call for call in self._calls if call.module is module), None)
        if first is None:
            # Not called like this in the forward sweep, or without effect on the loss.
            self._done = False
            return
        with torch.no_grad():
            here = first.at(detached(args), detached(kwargs))
            parameters = [self._iteration.parameters[i] for i in self._positions]
            gradients = here.gradients_of(parameters)
            if len(self._calls) > 1:
                old = first.gradients_of(parameters)
                for position, new, before in zip(self._positions, gradients, old, strict=True):
                    known = self._iteration.gradients[position]
                    if known is not None:
                        new.add_(known - before)
            others = [call for call in self._calls if call is not first]
            check = None
            if not self._layer.is_affine:
                check = Check(self._positions, _alignment([here, *others]))
            self._iteration.maximise_layer_(self._positions, gradients, self._epsilon, check)


def _alignment(calls: Sequence[Call]) -> Callable[[], float]:
    return lambda: math.fsum(call.alignment() for call in calls)

"""The layers whose true K has to be looked at, as it is not that of the linearization (method §3)."""

from __future__ import annotations

from functools import partial

from lightning_bsqh.method.reduction import Reduction
from lightning_bsqh.method.safeguard import TrueHamiltonian
from lightning_bsqh.method.trained import Trained
from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.network.layers import Layer

#: On the inputs of so many iterations a layer has to look affine.
_TRIED_OUT = 2


class BentLayers:
    """Layers that are not known to be affine in their parameters; those that turn out to be are let go.

    Args:
        layers: All that are not known to be affine, and can be run alone.
        boundaries: Records their inputs and adjoints.
        one_after_the_other: Whether the sweep is gauss-seidel, which looks at most of them itself.
    """

    def __init__(self, layers: list[Layer], boundaries: Boundaries, one_after_the_other: bool) -> None:
        self.layers = layers
        self._boundaries = boundaries
        self._one_after_the_other = one_after_the_other
        # How often a layer has been tried out and looked affine; the full number once it has not.
        self._seen: dict[str, int] = {}

    def checks(self, trained: Trained, reduction: Reduction) -> list[TrueHamiltonian]:
        """The layers whose true K has to be looked at at once, as far as they can be run alone in this iteration.

        Args:
            trained: What moves.
            reduction: Tells what the other processes have seen.
        """
        checks: list[TrueHamiltonian] = []
        self._try_out(reduction)
        located = trained.located(self.layers)
        if not located:
            return checks
        counts = reduction.most([float(len(self._boundaries.calls(layer))) for layer, _ in located])
        for (layer, positions), calls in zip(located, counts, strict=True):
            if calls > 1 or (calls == 1 and not self._one_after_the_other):
                checks.append(TrueHamiltonian(positions, partial(self._alignment, layer, reduction)))
        return checks

    def _alignment(self, layer: Layer, reduction: Reduction) -> float:
        return reduction.mean(self._boundaries.alignment(layer))

    def _try_out(self, reduction: Reduction) -> None:
        """Looks whether layers of no known kind are affine after all, on the inputs of two iterations."""
        open_to_doubt = [layer for layer in self.layers if self._seen.get(layer.name, 0) < _TRIED_OUT]
        if not open_to_doubt:
            return
        straight = [_looks_affine(layer, self._boundaries) for layer in open_to_doubt]
        # Bent in one process is bent in all.
        tried = reduction.most([float(s is not None) for s in straight])
        bent = reduction.most([float(s is False) for s in straight])
        for layer, is_tried, is_bent in zip(open_to_doubt, tried, bent, strict=True):
            if not is_tried:
                continue
            if is_bent:
                self._seen[layer.name] = _TRIED_OUT
                continue
            self._seen[layer.name] = self._seen.get(layer.name, 0) + 1
            if self._seen[layer.name] == _TRIED_OUT:
                layer.is_seen_affine = True
                self.layers.remove(layer)
                if not self._one_after_the_other:
                    self._boundaries.forget(layer)


def _looks_affine(layer: Layer, boundaries: Boundaries) -> bool | None:
    """Whether a layer looks affine on its present inputs; None if it cannot be told."""
    calls = boundaries.calls(layer)
    parameters = [p for p in layer.parameters.values() if p.requires_grad]
    if not calls or not parameters:
        return None
    return all(call.again().is_affine_in(parameters) for call in calls)

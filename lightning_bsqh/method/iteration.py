"""One iteration's w, G and D, and the candidates û made of them (method §2, §3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_bsqh.method.candidate import Candidate, LayerTerms
from lightning_bsqh.method.hamiltonian import affine_hamiltonian, augmented_gain, squared_length
from lightning_bsqh.method.safeguard import Safeguard, TrueHamiltonian
from lightning_bsqh.regularizers import MetricWeight, Regularizer


class Iteration:
    """Makes candidates from one forward and adjoint sweep, and goes back where none is good.

    The parameters themselves hold whatever point is looked at; w is kept as a copy.

    Args:
        parameters: All trained tensors; they hold w.
        gradients: −G for each, None where the loss does not depend on it.
        metric: Computes D for each. Called anew for every candidate, so that D takes no memory during the sweeps.
        regularizer: R as it holds in this iteration.
        regularized: Positions of the tensors that R acts on.
        checks: The layers that are not affine in their parameters and can be run alone.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        metric: Callable[[], Sequence[MetricWeight]],
        regularizer: Regularizer,
        regularized: Sequence[int],
        checks: Sequence[TrueHamiltonian] = (),
    ) -> None:
        self.parameters = parameters
        self.gradients = gradients
        self._checks = checks
        self._metric = metric
        if regularizer.depends_on_metric:
            regularizer = regularizer.held_in([metric()[i] for i in regularized])
        self._regularizer = regularizer
        self._regularized = regularized
        self._safeguard = Safeguard(parameters, regularizer, regularized)
        self._weights = [parameters[i] for i in regularized]
        self._start = self._base = _copies(parameters)
        # Whether the parameters may hold something else than the base point.
        self._moved = False
        self._layer_metric: Sequence[MetricWeight] = ()
        self._layer_regularizers: dict[int, Regularizer] = {}
        self._excess = 0.0
        #: ρR at the base point.
        self.penalty = float(regularizer.penalty(self._weights))
        #: Whether w violates a constraint: one that has just been tightened.
        self.tightened = not bool(regularizer.admits(self._weights))

    def maximise_(self, epsilon: float) -> Candidate:
        """Puts û_l = argmax K_{ε,l}(·; w_l) into the parameters, all layers from the same w and G (jacobi)."""
        metric = self._metric()
        for p, w, gradient, d in zip(self.parameters, self._base, self.gradients, metric, strict=True):
            if self._moved:
                p.copy_(w)
            if gradient is not None:
                _ascend_(p, gradient, d, epsilon)
        self._moved = True
        self._regularizer.prox_(self._weights, [metric[i] for i in self._regularized], epsilon)
        if not self._checks:
            return self._measure(metric)
        excess = self._safeguard.apply_(self._checks, self._base, self.gradients, metric, epsilon)
        candidate = self._measure(metric, excess)
        if self._regularizer.couples_tensors and not self.tightened and not candidate.gain(epsilon) >= 0.0:
            # What one layer gives up for another is worth it in the linearisation, but not in the true K.
            self.restore_()
            candidate = self._measure(metric)
        return candidate

    def begin_layers(self) -> None:
        """Prepares :meth:`maximise_layer_`, with the jacobi proposal of :meth:`maximise_` in the parameters."""
        self._layer_metric = self._metric()
        self._layer_regularizers = dict(zip(self._regularized, self._regularizer.separate(self._weights), strict=True))
        self._excess = 0.0

    def restore_layer_(self, positions: Sequence[int]) -> None:
        """Puts w_l back into one layer's tensors."""
        for i in positions:
            self.parameters[i].copy_(self._base[i])

    def maximise_layer_(
        self, positions: Sequence[int], gradients: Sequence[Tensor], epsilon: float, check: TrueHamiltonian | None
    ) -> None:
        """Puts û_l = argmax K_{ε,l}(·; w_l) into one layer's tensors, which hold w_l (gauss-seidel).

        Args:
            positions: Where the layer's tensors are among all parameters.
            gradients: −G_l for each of them, at the layer's present input.
            epsilon: The augmentation parameter.
            check: Evaluates the layer's true K, None if it is affine.
        """
        for i, gradient in zip(positions, gradients, strict=True):
            d = self._layer_metric[i]
            _ascend_(self.parameters[i], gradient, d, epsilon)
            if i in self._layer_regularizers:
                self._layer_regularizers[i].prox_([self.parameters[i]], [d], epsilon)
        if check is None:
            return
        # Against the parameters of this moment: the layers before have their û already.
        base = [p.detach().clone() for p in self.parameters]
        for i in positions:
            base[i] = self._base[i]
        given: list[Tensor | None] = list(self.gradients)
        for i, gradient in zip(positions, gradients, strict=True):
            given[i] = gradient
        self._excess += self._safeguard.apply_([check], base, given, self._layer_metric, epsilon)

    def length(self, candidate: Candidate) -> float:
        """τ of a candidate that the parameters hold, without what a constraint just tightened has set to zero."""
        if not self.tightened:
            return candidate.tau
        kept = [
            squared_length((p - w).mul_(p != 0).flatten(), d)
            for p, w, d in zip(self.parameters, self._base, self._metric(), strict=True)
        ]
        return _sum(kept)

    def measure(self) -> Candidate:
        """Compares what the parameters hold with the base point."""
        return self._measure(self._metric())

    def measure_layers(self) -> Candidate:
        """The same after :meth:`maximise_layer_` has gone through the layers."""
        return self._measure(self._layer_metric, self._excess)

    def _measure(self, metric: Sequence[MetricWeight], excess: float = 0.0) -> Candidate:
        slopes: list[Tensor] = []
        taus: list[Tensor] = []
        for p, w, gradient, d in zip(self.parameters, self._base, self.gradients, metric, strict=True):
            step = (p - w).flatten()
            if gradient is not None:
                slopes.append(-torch.dot(gradient.flatten(), step))
            taus.append(squared_length(step, d))
        penalty_change = float(self._regularizer.penalty(self._weights)) - self.penalty
        return Candidate(_sum(slopes), _sum(taus), penalty_change, excess)

    def terms(self, layers: Mapping[str, Sequence[int]], epsilon: float) -> dict[str, LayerTerms]:
        """Hamiltonian and gain, layer by layer, without another sweep.

        Args:
            layers: The positions of each layer's tensors.
            epsilon: The ε of K.
        """
        metric = self._metric()
        found = {}
        for name, positions in layers.items():
            alignments, slopes, taus = [0.0], [0.0], [0.0]
            for i in positions:
                base, d = self._base[i].flatten().double(), metric[i]
                step = self.parameters[i].detach().flatten().double() - base
                taus.append(float(squared_length(step, d.double() if isinstance(d, Tensor) else d)))
                if (gradient := self.gradients[i]) is not None:
                    alignments.append(-float(torch.dot(gradient.flatten().double(), base)))
                    slopes.append(-float(torch.dot(gradient.flatten().double(), step)))
            own = [i for i in self._regularized if i in positions]
            before = after = 0.0
            if own:
                r = self._regularizer.restricted_to([self._regularized.index(i) for i in own])
                before = float(r.penalty([self._base[i] for i in own]))
                after = float(r.penalty([self.parameters[i] for i in own]))
            gain = augmented_gain(math.fsum(slopes), after - before, epsilon, math.fsum(taus))
            found[name] = LayerTerms(affine_hamiltonian(math.fsum(alignments), before), gain)
        return found

    def restore_(self, to_start: bool = False) -> None:
        """Puts the base point back into the parameters, to the bit; or the w of the start, before any projection."""
        for p, w in zip(self.parameters, self._start if to_start else self._base, strict=True):
            p.copy_(w)

    def project_(self) -> None:
        """Moves the base point, and the parameters with it, to the nearest admissible point in the metric."""
        self.restore_()
        metric = self._metric()
        self._regularizer.project_(self._weights, [metric[i] for i in self._regularized])
        self._base = _copies(self.parameters)
        self.penalty = float(self._regularizer.penalty(self._weights))


def _ascend_(point: Tensor, gradient: Tensor, metric: MetricWeight, epsilon: float) -> None:
    """Replaces w by z = w + G/(2εD) with G = −gradient, in place."""
    if isinstance(metric, Tensor):
        point.addcdiv_(gradient, metric, value=-0.5 / epsilon)
    else:
        point.add_(gradient, alpha=-0.5 / (epsilon * metric))


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def _sum(values: Sequence[Tensor]) -> float:
    """Σ of scalars in double precision, with one transfer from the device."""
    return math.fsum(torch.stack([v.to(values[0].device) for v in values]).tolist()) if values else 0.0

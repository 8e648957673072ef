"""Weights, the maximizer of the augmented Hamiltonians at them, and what both say about every layer (method §9)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_bsqh.certificate.given_metric import metric_at
from lightning_bsqh.certificate.result import LayerResidual, PMPResidual
from lightning_bsqh.certificate.sampling import sampled_residual
from lightning_bsqh.certificate.shares import Share
from lightning_bsqh.certificate.sweep import in_double_precision
from lightning_bsqh.method.hamiltonian import affine_hamiltonian, elementwise_gain
from lightning_bsqh.method.iteration import Iteration
from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.network.layers import Layer
from lightning_bsqh.regularizers import MetricWeight, Regularizer


class Point:
    """u, G, D and the maximizer û, and what they say about a layer."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor | None],
        metric: str | Mapping[str, MetricWeight],
        regularizer: Regularizer,
        layers: Sequence[Layer],
        epsilon: float,
    ) -> None:
        names = list(parameters)
        chosen = {name for layer in layers for name in layer.regularized}
        weights = _doubles(parameters, regularizer, chosen)
        d = metric_at(metric, weights, gradients, regularizer)
        regularizer = regularizer.held_in([d[n] for n in names if n in chosen])
        self._layers = layers
        self._weights = weights
        self._ascent = {n: torch.zeros_like(weights[n]) if g is None else -g for n, g in gradients.items()}
        self._metric = d
        self._regularizer = regularizer
        self._epsilon = epsilon
        #: Positions of the tensors that R acts on, in the order in which it gets them.
        self._positions = {name: i for i, name in enumerate(n for n in names if n in chosen)}
        # The very iteration of the training, on copies: the certificate is about what would be done next.
        self._maximiser = {name: w.clone() for name, w in weights.items()}
        iteration = Iteration(
            list(self._maximiser.values()),
            [gradients[n] for n in names],
            lambda pack, _: pack.side_by_side([d[n] for n in names]),
            regularizer,
            [i for i, n in enumerate(names) if n in chosen],
        )
        if iteration.tightened:
            raise ValueError(
                f"regularizer={regularizer!r}: the weights violate its constraint, so K is minus infinity there."
                " Project them first, or pass what holds now, such as optimizer.regularizer.at(step, total_steps)."
            )
        own = list(self._positions)
        #: argmax of H where there is one.
        extremes = regularizer.hamiltonian_maximizer([self._ascent[n] for n in own])
        self._extremes = {n: v for n, v in zip(own, extremes, strict=True) if v is not None}
        candidate = iteration.maximise_(epsilon)
        #: r, over all layers together.
        self.total = candidate.gain(epsilon)
        size = abs(float(candidate.slope)) + abs(candidate.penalty_change) + epsilon * float(candidate.tau)
        if not self.total >= -1e-9 * size - 1e-12 * abs(float(iteration.penalty)):
            raise RuntimeError(
                f"regularizer={regularizer!r}: its prox_ found a point with a K that is lower by {-self.total:.3g} than"
                " that of the weights themselves, so it does not maximize: check prox_ against penalty."
            )

    def result(self, loss: float, sampled: Mapping[str, float]) -> PMPResidual:
        """All that there is to say.

        Args:
            loss: L(u).
            sampled: Lower bounds of the true residual, of the layers that have one.
        """
        # The weights that R acts on, in the order in which the optimizer would hand them over.
        regularized = [self._weights[n] for layer in self._layers for n in layer.parameters if n in layer.regularized]
        return PMPResidual(
            total=self.total,
            hamiltonian=affine_hamiltonian(
                math.fsum(map(self.alignment, self._weights)), float(self._regularizer.penalty(regularized))
            ),
            hamiltonian_gap=self.hamiltonian_gap(list(self._weights)),
            loss=loss,
            epsilon=self._epsilon,
            coupled=self._regularizer.couples_tensors,
            layers={layer.name: self.layer(layer, sampled.get(layer.name)) for layer in self._layers},
        )

    def _restricted_to(self, names: Sequence[str]) -> Regularizer:
        """R as it acts on these tensors alone."""
        return self._regularizer.restricted_to([self._positions[name] for name in names])

    def alignment(self, name: str) -> float:
        """⟨G, u⟩ of one tensor."""
        return float(torch.dot(self._ascent[name].flatten(), self._weights[name].flatten()))

    def hamiltonian_gap(self, names: Sequence[str]) -> float | None:
        """Max H − H(u) over those of the tensors for which there is a maximum, None if there is none of them."""
        names = [n for n in names if n in self._extremes]
        if not names:
            return None
        u, v = [self._weights[n] for n in names], [self._extremes[n] for n in names]
        slopes = [float((self._ascent[n] * (b - a)).sum()) for n, a, b in zip(names, u, v, strict=True)]
        regularizer = self._restricted_to(names)
        return math.fsum(slopes) - float(regularizer.penalty(v) - regularizer.penalty(u))

    def sampled_of(
        self,
        layers: Sequence[Layer],
        parameters: Mapping[str, Tensor],
        boundaries: Boundaries,
        samples: int,
        share: Share,
    ) -> dict[str, float]:
        """The largest gain of the true K among sampled points, for those of the layers that can be run alone.

        Args:
            layers: Those that are not affine.
            parameters: The network's own tensors, which hold u; they do again afterwards.
            boundaries: The layers' inputs and adjoints.
            samples: Number of random points.
            share: Means over the processes.
        """
        known = [layer for layer in layers if share.everywhere(bool(boundaries.calls(layer)))]

        def alignment(layer: Layer) -> float:
            return share.mean(boundaries.alignment(layer))

        return {layer.name: self._sampled(layer, parameters, partial(alignment, layer), samples) for layer in known}

    def _sampled(
        self, layer: Layer, parameters: Mapping[str, Tensor], alignment: Callable[[], float], samples: int
    ) -> float:
        names = list(layer.parameters)
        own = self._regularizer.separate([self._weights[n] for n in self._positions])
        regularizers = [own[self._positions[n]] if n in self._positions else None for n in names]
        base = [self._weights[n] for n in names]
        before = alignment()
        kept = [parameters[n].detach().clone() for n in names]

        def gain(point: Sequence[Tensor]) -> float:
            for name, v in zip(names, point, strict=True):
                parameters[name].data.copy_(v)
            value = alignment() - before
            for v, u, name, r in zip(point, base, names, regularizers, strict=True):
                d = self._metric[name]
                value -= self._epsilon * float((d * (v - u).square()).sum())
                value -= 0.0 if r is None else float(r.penalty([v]) - r.penalty([u]))
            return value

        try:
            return sampled_residual(
                base,
                [self._ascent[n] for n in names],
                [self._metric[n] for n in names],
                regularizers,
                self._epsilon,
                gain,
                samples,
                torch.Generator().manual_seed(0),
            )
        finally:
            for name, value in zip(names, kept, strict=True):
                parameters[name].data.copy_(value)

    def layer(self, layer: Layer, sampled: float | None) -> LayerResidual:
        """What there is to say about one layer; ``sampled`` is the lower bound of its true residual, if it has one."""
        parts = [self._gains(name, name in layer.regularized) for name in layer.parameters]
        weights = [n for n in layer.parameters if n in layer.regularized]
        penalty = float(self._restricted_to(weights).penalty([self._weights[n] for n in weights])) if weights else 0.0
        return LayerResidual(
            name=layer.name,
            residual=math.fsum(total for _, total in parts),
            hamiltonian=affine_hamiltonian(math.fsum(self.alignment(n) for n in layer.parameters), penalty),
            hamiltonian_gap=self.hamiltonian_gap(list(layer.parameters)),
            linearized=not layer.is_affine,
            sampled=sampled,
            gains=torch.cat([gains.cpu() for gains, _ in parts]),
        )

    def _gains(self, name: str, regularized: bool) -> tuple[Tensor, float]:
        """The gain of every weight of one tensor, flat, and of all of them together."""
        u, maximiser = self._weights[name], self._maximiser[name]
        change: Tensor | float | None = 0.0
        own = self._restricted_to([name]) if regularized else None
        if own is not None:
            before, after = own.elementwise(u), own.elementwise(maximiser)
            change = None if before is None or after is None else after - before
        gains = elementwise_gain(
            self._ascent[name], maximiser - u, 0.0 if change is None else change, self._metric[name], self._epsilon
        )
        total = float(gains.sum())
        if change is None:
            assert own is not None
            total -= float(own.penalty([maximiser]) - own.penalty([u]))
            gains = torch.full_like(gains, total)
        return gains.flatten(), total


def _doubles(parameters: Mapping[str, Tensor], regularizer: Regularizer, chosen: set[str]) -> dict[str, Tensor]:
    """The weights in double precision, admissible if those given are so in their own."""
    weights = {name: in_double_precision(p) for name, p in parameters.items()}
    own = [parameters[n].detach() for n in parameters if n in chosen]
    if regularizer.admits(own):
        # The end of a box or a level, rounded to single precision, may lie beside it in double precision.
        regularizer.project_([weights[n] for n in parameters if n in chosen], [1.0] * len(own))
    return weights

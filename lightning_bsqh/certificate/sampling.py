"""A lower bound of the residual of a layer that is not affine in its parameters, by sampling the true K (method §9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_bsqh.regularizers import MetricWeight, Regularizer

#: Steps along the proximal direction that are always tried, as shares of that to the maximizer of the linearization.
_SHARES = (2.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)


def sampled_residual(
    weights: Sequence[Tensor],
    ascents: Sequence[Tensor],
    metric: Sequence[MetricWeight],
    regularizers: Sequence[Regularizer | None],
    epsilon: float,
    gain: Callable[[Sequence[Tensor]], float],
    samples: int,
    generator: torch.Generator,
) -> float:
    """The largest K_ε(v; u) − K_ε(u; u) found among admissible points v; at least 0, which is u itself.

    The points are proximal points of u + tG/(2εD), t along a few steps and at random, and of the same with noise of the
    size of these steps: where a maximizer would be if the layer were nearly affine, and around it. It is
    a lower bound: a residual above it is not excluded.

    Args:
        weights: u of the layer's tensors, double precision.
        ascents: G for each.
        metric: D for each.
        regularizers: R for each by itself, None where R does not act.
        epsilon: ε > 0.
        gain: The true K_ε(v; u) − K_ε(u; u) at points of the weights' shapes.
        samples: Number of random points.
        generator: Where they are drawn from.
    """
    steps = [g / (2.0 * epsilon * d) for g, d in zip(ascents, metric, strict=True)]
    # Where G vanishes, the noise still has to reach somewhere.
    sizes = [max(float(s.square().mean().sqrt()), 1e-3 * float(u.square().mean().sqrt()), 1e-8) for s, u in
             zip(steps, weights, strict=True)]  # fmt: skip
    best = 0.0
    for number in range(len(_SHARES) + samples):
        random = number >= len(_SHARES)
        share = 2.0 * float(torch.rand((), generator=generator)) if random else _SHARES[number]
        point = []
        for u, step, size, d, regularizer in zip(weights, steps, sizes, metric, regularizers, strict=True):
            v = u + share * step
            if random:
                noise = torch.randn(u.shape, generator=generator, dtype=torch.float64).to(u)
                v += size * float(torch.rand((), generator=generator)) * noise
            if regularizer is not None:
                regularizer.prox_([v], [d], epsilon)
            point.append(v)
        value = gain(point)
        if value > best:
            best = value
    return best

"""Hamiltonian and augmented Hamiltonian of layers that are affine in their parameters (method §1, §3)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_bsqh.regularizers.base import MetricWeight


def squared_length(step: Tensor, metric: MetricWeight) -> Tensor:
    """‖v‖²_D = Σ D_i v_i², a scalar tensor.

    Args:
        step: v, flat.
        metric: D, of as many elements in any shape, or a scalar.
    """
    return torch.dot(step * (metric.flatten() if isinstance(metric, Tensor) else metric), step)


def augmented_gain(
    slope: Tensor | float, penalty_change: Tensor | float, epsilon: float, tau: Tensor | float
) -> Tensor | float:
    """K_ε(û; w) − K_ε(w; w) = ⟨G, û−w⟩ − ρ[R(û) − R(w)] − ε‖û−w‖²_D, summed over the layers.

    At the maximizer it is at least zero, up to rounding (method §3); exact where λ is affine in u.

    Args:
        slope: ⟨G, û − w⟩.
        penalty_change: ρ[R(û) − R(w)].
        epsilon: The augmentation parameter.
        tau: ‖û − w‖²_D.
    """
    return slope - penalty_change - epsilon * tau


def elementwise_gain(
    ascent: Tensor, step: Tensor, penalty_change: Tensor | float, metric: MetricWeight, epsilon: float
) -> Tensor:
    """The part of every single weight in K_ε(û; w) − K_ε(w; w): G_i s_i − ρ[R(û_i) − R(w_i)] − εD_i s_i².

    Args:
        ascent: G, any shape.
        step: s = û − w, the same shape.
        penalty_change: ρ[R(û_i) − R(w_i)], the same shape, or a number common to all.
        metric: D, the same shape or a scalar.
        epsilon: The augmentation parameter.
    """
    return ascent * step - penalty_change - epsilon * metric * step.square()


def affine_hamiltonian(alignment: float, penalty: float) -> float:
    """H_l(u_l) = ⟨G_l, u_l⟩ − ρR_l(u_l), without another sweep.

    An affine layer is λ(x, u) = A(x)u + c(x), so Σ_s⟨p, λ(x, u)⟩ = ⟨Σ_s A(x)ᵀp, u⟩ + Σ_s⟨p, c(x)⟩ with
    G = Σ_s A(x)ᵀp. The last term, zero if all of the layer's parameters are trained, does not depend on u
    and is left out.

    Args:
        alignment: ⟨G_l, u_l⟩.
        penalty: ρR_l(u_l).
    """
    return alignment - penalty

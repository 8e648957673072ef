"""The augmented Hamiltonian of layers that are affine in their parameters (method §1, §3)."""

from __future__ import annotations


def augmented_gain(slope: float, penalty_change: float, epsilon: float, tau: float) -> float:
    """K_ε(û; w) − K_ε(w; w) = ⟨G, û−w⟩ − ρ[R(û) − R(w)] − ε‖û−w‖²_D, summed over the layers.

    At the maximiser it is at least zero, up to rounding (method §3); exact where λ is affine in u.

    Args:
        slope: ⟨G, û − w⟩.
        penalty_change: ρ[R(û) − R(w)].
        epsilon: The augmentation parameter.
        tau: ‖û − w‖²_D.
    """
    return slope - penalty_change - epsilon * tau

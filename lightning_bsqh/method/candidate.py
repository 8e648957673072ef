"""What a candidate û is worth, whole and layer by layer (method §2)."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_bsqh.method.hamiltonian import augmented_gain


@dataclass(frozen=True)
class Candidate:
    """How a candidate û differs from the base point w.

    Attributes:
        slope: ⟨G, û − w⟩, the decrease that the linear model promises.
        tau: ‖û − w‖²_D.
        penalty_change: ρ[R(û) − R(w)].
        excess: What Σ_l⟨p, λ(x, û) − λ(x, w)⟩ exceeds the slope by, over the layers that are not affine and whose
            true K was evaluated.
    """

    slope: float
    tau: float
    penalty_change: float
    excess: float = 0.0

    def gain(self, epsilon: float) -> float:
        """K_ε(û; w) − K_ε(w; w), summed over the layers."""
        return augmented_gain(self.slope + self.excess, self.penalty_change, epsilon, self.tau)


@dataclass(frozen=True)
class LayerTerms:
    """One layer's part of the Hamiltonian at w and of K's gain at what the parameters hold.

    Attributes:
        hamiltonian: H_l(w_l) = ⟨G_l, w_l⟩ − ρR_l(w_l).
        gain: K_{ε,l}(û_l; w_l) − K_{ε,l}(w_l; w_l), of the linearisation where the layer is not affine.
    """

    hamiltonian: float
    gain: float

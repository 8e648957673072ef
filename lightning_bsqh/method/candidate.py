"""What a candidate û is worth, whole and layer by layer (method §2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_bsqh.method.hamiltonian import augmented_gain


@dataclass(frozen=True)
class Candidate:
    """How a candidate û differs from the base point w; scalars on the device, or numbers once they have been read.

    Attributes:
        slope: ⟨G, û − w⟩, the decrease that the linear model promises.
        tau: ‖û − w‖²_D.
        penalty: ρR(û).
        base_penalty: ρR(w).
        excess: What Σ_l⟨p, λ(x, û) − λ(x, w)⟩ exceeds the slope by, over the layers that are not affine and whose
            true K was evaluated.
        proposed: ‖û − w‖²_D of the closed form, before û was moved back for the sake of the true K; 0 if it was not.
        mean_slope: ⟨Ḡ, û − w⟩, where û was made along an average; None where it was made along G.
    """

    slope: Tensor | float
    tau: Tensor | float
    penalty: Tensor | float
    base_penalty: Tensor | float
    excess: float = 0.0
    proposed: Tensor | float = 0.0
    mean_slope: Tensor | float | None = None

    def scalars(self) -> dict[str, Tensor | float]:
        """What has to be read, by name."""
        found = {
            "slope": self.slope,
            "tau": self.tau,
            "penalty": self.penalty,
            "base_penalty": self.base_penalty,
            "excess": self.excess,
            "proposed": self.proposed,
        }
        return found if self.mean_slope is None else {**found, "mean_slope": self.mean_slope}

    @classmethod
    def read_from(cls, values: Mapping[str, float]) -> Candidate:
        """The same in numbers.

        Args:
            values: What has been read, by the names of :meth:`scalars`.
        """
        names = ("slope", "tau", "penalty", "base_penalty", "excess", "proposed", "mean_slope")
        return cls(**{name: values[name] for name in names if name in values})

    @property
    def was_thrown_away(self) -> bool:
        """Whether nothing is left of what the closed form proposed, so that a shorter step may be better."""
        return float(self.tau) == 0.0 and float(self.proposed) > 0.0

    @property
    def penalty_change(self) -> float:
        """ρ[R(û) − R(w)]."""
        return float(self.penalty - self.base_penalty)

    def gain(self, epsilon: float) -> float:
        """K_ε(û; w) − K_ε(w; w), summed over the layers; of the K that û was made with."""
        slope = self.slope if self.mean_slope is None else self.mean_slope
        return float(augmented_gain(slope + self.excess, self.penalty - self.base_penalty, epsilon, self.tau))


@dataclass(frozen=True)
class LayerTerms:
    """One layer's part of the Hamiltonian at w and of K's gain at what the parameters hold.

    Attributes:
        hamiltonian: H_l(w_l) = ⟨G_l, w_l⟩ − ρR_l(w_l).
        gain: K_{ε,l}(û_l; w_l) − K_{ε,l}(w_l; w_l), of the linearization where the layer is not affine.
    """

    hamiltonian: float
    gain: float

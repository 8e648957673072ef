"""What a trial sweep shows (method §4)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """What a rule learns from one trial sweep.

    Attributes:
        epsilon: The ε with which û was made, schedule included.
        loss_change: L_B(û) − L_B(w), possibly not finite.
        slope: ⟨G, û − w⟩, the decrease that the linear model promises.
        tau: ‖û − w‖²_D.
        accepted: Whether û became the iterate.
        tightened: Whether w violated a constraint that has just been tightened: then û − w is mostly
            thresholding, and its curvature says little about the smooth part.
        resolution: The rounding error of the loss; what lies below it is noise.
        length: Σ G²/(4D), which is ε²τ of the step without a regularizer: a measure of the gradient.
        relative: ‖G/D‖/‖w‖ over all weights that are not zero: 2ε times the length of their step, as a share of that
            of the weights; not a number unless the rule looks at it.
        progress: Share of the training that is done; None if its length is unknown.
    """

    epsilon: float
    loss_change: float
    slope: float
    tau: float
    accepted: bool
    tightened: bool
    resolution: float
    length: float = math.nan
    relative: float = math.nan
    progress: float | None = None

    @property
    def curvature(self) -> float | None:
        """Λ̂ = 2(L_B(û) − L_B(w) + ⟨G, û−w⟩)/‖û−w‖²_D, None where it cannot be told (method §4)."""
        second_order = self.loss_change + self.slope
        if not math.isfinite(second_order) or self.tau <= 0.0 or abs(second_order) <= self.resolution:
            return None
        return 2.0 * second_order / self.tau

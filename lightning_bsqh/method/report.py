"""What one iteration says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepReport:
    """What one iteration did. Losses and objectives are means over the batch, in the loss's units.

    Attributes:
        step: Number of the iteration, from 0.
        loss: L_B(w) of the forward sweep.
        objective_before: J_B at the point that the trials were compared with: w, or its projection
            where a constraint has just been tightened and w was no better.
        objective_after: J_B at the new iterate; not a number if the step was not tested.
        loss_decrease: objective_before − objective_after, formed as a difference of the parts.
        epsilon: ε of the last trial, schedule included.
        tau: ‖u^{k+1} − w‖²_D, 0 if nothing was accepted.
        trials: Number of trial sweeps at candidates û; 0 if the step was not tested (``trial_every``).
        accepted: Whether a candidate was accepted.
        skipped: Whether loss or gradient were not finite, or there was no loss, or the loss was so large that the step
            before, which was not tested, has been taken back; else nothing changed then.
        tightened: Whether w violated a constraint that had just been tightened.
        hamiltonian_gain: K_ε(û; w) − K_ε(w; w) of the last candidate, summed over the layers.
    """

    step: int
    loss: float
    objective_before: float
    objective_after: float
    loss_decrease: float
    epsilon: float
    tau: float
    trials: int
    accepted: bool
    skipped: bool
    tightened: bool
    hamiltonian_gain: float

    @property
    def rejected_trials(self) -> int:
        """Number of trials whose candidate was not accepted."""
        return self.trials - int(self.accepted and self.trials > 0)


@dataclass(frozen=True)
class LayerReport:
    """What one iteration did to one layer; all in the units of the loss.

    Attributes:
        hamiltonian: H_l(w_l) = ⟨G_l, w_l⟩ − ρR_l(w_l) at the w of the forward sweep.
        residual: max K_ε(·; w) − K_ε(w; w), the layer's part, for the ε of the first trial.
        gain: K_ε(û; w) − K_ε(w; w), the layer's part, for the last candidate û and its ε.
    """

    hamiltonian: float
    residual: float
    gain: float

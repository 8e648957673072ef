"""What each chart shows and what it looks like in a healthy run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Explained:
    """The words and the axis of a chart.

    Attributes:
        title: What it shows.
        unit: The title of its vertical axis.
        note: A sentence on what exactly is shown; may be empty.
        healthy: What the curve looks like in a healthy run, and what should make one look again; may be empty.
        log: Whether the axis is logarithmic where the values allow it.
        percent: Whether values are shares, shown in per cent.
    """

    title: str
    unit: str
    note: str = ""
    healthy: str = ""
    log: bool = False
    percent: bool = False


OBJECTIVE = Explained(
    "Objective", "objective J, loss units", "J after the step, on the step's own batch.",
    "Falls steeply, then slowly. It may rise while a sparsity ramp tightens, and falls again after the ramp's end."
    " Jumps that stay, or a curve that never falls: look at ε and at the trials.",
    log=True,
)  # fmt: skip
LOSS = Explained(
    "Loss", "loss", "",
    "Training and validation loss fall together. A validation loss that turns upward while the training loss falls"
    " is overfitting; more zeros, or fewer epochs, help.",
    log=True,
)  # fmt: skip
EPSILON = Explained(
    "Augmentation ε", "ε", "A cross marks an iteration with rejected trials.",
    "Finds its level within the first few hundred steps and then moves slowly. With the default rule the rise at the"
    " end is the schedule's: it shortens the steps, as a learning rate that is lowered does, and is no sign of trouble."
    " A few crosses are normal, most of all at the start.",
    log=True,
)  # fmt: skip
SPARSITY = Explained(
    "Zero weights", "share of exact zeros", "Exact zeros among the regularized weights.",
    "Follows the ramp up to the target and stays there to the end. Layers may differ widely: large ones end emptier"
    " than small ones. A layer at 100 % passes nothing on.",
    percent=True,
)  # fmt: skip
ACCURACY = Explained(
    "Accuracy", "share of samples that are right", "",
    "Rises. What it loses while zeros are demanded it makes up for after the target is reached.",
    percent=True,
)  # fmt: skip
DECREASE = Explained(
    "Decrease of the objective per step", "J(w) − J(û), loss units",
    "On the step's own batch, against what the acceptance test promises.",
    "Lies above the promise, by orders of magnitude, and gets smaller in the course of the training. Increases occur"
    " only while a constraint is being tightened.",
    log=True,
)  # fmt: skip
STEP_LENGTH = Explained(
    "Step length τ", "τ = ‖û − w‖²_D", "Squared length of the last trial's step.",
    "Falls in the course of the training, and once more at the end, where ε rises. Steps that grow tenfold in a moment"
    " are worth a look at the loss of those batches.",
    log=True,
)  # fmt: skip
TRIALS = Explained(
    "Trials per iteration", "trials", "1 means that the first trial was accepted.",
    "Nearly always 1, with a few higher bars. Many iterations at the largest number mean that steps are too long for"
    " the batches: raise ε or take larger batches.",
)  # fmt: skip
NONZERO = Explained(
    "Weights left", "non-zero weights", "", "Mirrors the zeros: falls along the ramp, then level.", log=True
)
MULTIPLY_ADDS = Explained(
    "Multiply-adds left", "share of multiply-adds",
    "Of linear and convolutional layers, if zeros are skipped.",
    "Falls with the weights, but not as far: convolutions, whose weights are used at many positions, keep more"
    " of theirs.",
    percent=True,
)  # fmt: skip
SUPPORT = Explained(
    "Weights that came and went", "weights", "Between one reading and the next.",
    "More go than come while the ramp rises. After it both are about equal and become few.",
)  # fmt: skip
RESIDUAL = Explained(
    "PMP residual", "residual, loss units",
    "Zero where the weights satisfy the maximum condition; below zero where a constraint has just been tightened.",
    "Falls by orders of magnitude. With mini-batches it levels off, because every batch has its own maximum.",
    log=True,
)  # fmt: skip
HAMILTONIAN = Explained(
    "Hamiltonian", "H, loss units", "At the weights before the step, on the step's own batch.",
    "Has no level that it ought to have. It tells layers apart, and should not jump after the ramp's end.",
)  # fmt: skip
GAIN = Explained(
    "Gain of K, augmented Hamiltonian", "K(û) − K(w), loss units",
    "Below zero where a constraint has just been tightened, or a layer gives up weights for others.",
    "Positive, and falling with the step length. A layer far below all others hardly learns any more.",
    log=True,
)  # fmt: skip
SKIPPED = Explained(
    "Skipped batches", "batches so far", "Loss or gradient not finite.",
    "Stays at 0, or is a single step. A line that climbs means that the training is not learning.",
)  # fmt: skip

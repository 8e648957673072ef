"""What shrinking has removed, and what it could not, and why."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerChange:
    """One layer before and after.

    Attributes:
        layer: Its name.
        kind: What its outputs are: filters, neurons or columns.
        outputs: Their numbers before and after.
        inputs: Numbers of inputs before and after.
    """

    layer: str
    kind: str
    outputs: tuple[int, int]
    inputs: tuple[int, int]


@dataclass(frozen=True)
class Kept:
    """Outputs of a layer that have no weights left and stay, nevertheless.

    Attributes:
        layer: Its name.
        kind: What they are: filters, neurons or columns.
        count: Their number.
        reason: Why they stay.
    """

    layer: str
    kind: str
    count: int
    reason: str

    def __str__(self) -> str:
        return f"{self.count:,} zero {self.kind} of {self.layer} stay: the output {self.reason}"


@dataclass(frozen=True)
class ShrinkReport:
    """What :func:`lightning_bsqh.export.shrink` has done.

    Attributes:
        layers: Every layer that has been looked at.
        kept: Zero filters, neurons and columns that stay, by layer and reason.
        parameters: Number of parameters before and after.
        difference: Largest difference of the outputs on the example inputs, as a share of the largest output.
        tolerance: What it was allowed to be.
    """

    layers: list[LayerChange] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    parameters: tuple[int, int] = (0, 0)
    difference: float = 0.0
    tolerance: float = 0.0

    @property
    def removed(self) -> dict[str, int]:
        """Numbers of removed filters, neurons and columns, by layer, where there are any."""
        return {c.layer: c.outputs[0] - c.outputs[1] for c in self.layers if c.outputs[0] > c.outputs[1]}

    def __str__(self) -> str:
        lines = [f"{self.parameters[0]:,} parameters became {self.parameters[1]:,}."]
        lines += [
            f"{c.layer}: {c.outputs[0]:,} → {c.outputs[1]:,} {c.kind}{_inputs(c)}"
            for c in self.layers
            if c.outputs[0] > c.outputs[1] or c.inputs[0] > c.inputs[1]
        ]
        lines += [str(kept) for kept in self.kept]
        return "\n".join([*lines, f"Largest difference of the outputs: {self.difference:.1e} (of the largest)."])


def _inputs(change: LayerChange) -> str:
    """Nothing for a layer that reads the network's own input."""
    before, after = change.inputs
    return f", {before:,} → {after:,} inputs" if before else ""

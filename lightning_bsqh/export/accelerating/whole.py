"""What makes a traced network faster as a whole, kept step by step where it does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from lightning_bsqh.export.accelerating.fusing import fuse_norms
from lightning_bsqh.export.accelerating.in_place import in_place
from lightning_bsqh.export.accelerating.memory_format import channels_last
from lightning_bsqh.export.comparison import difference, outputs_of, tolerance
from lightning_bsqh.export.measuring import latencies


@dataclass(frozen=True)
class Step:
    """One change to the whole network.

    Attributes:
        name: What was changed.
        count: How many layers, inputs or operations it is about.
        milliseconds: Duration of a forward before and after; none if it could not be used.
        used: Whether it was faster, twice.
        failed: Why it could not be used; empty if it could.
    """

    name: str
    count: int
    milliseconds: tuple[float, ...]
    used: bool
    failed: str = ""

    def __str__(self) -> str:
        if self.failed:
            return f"{self.name}: not used, {self.failed}"
        before, after = self.milliseconds
        return f"{self.name} ({self.count}): {before:.4f} → {after:.4f} ms{'' if self.used else ', not used'}"


# In this order: writing in place pays more where the channels come last.
STEPS: dict[str, Callable[[fx.GraphModule, tuple[Any, ...]], int]] = {
    "BatchNorm put into the layer before": lambda network, inputs: len(fuse_norms(network)),
    "channels last": channels_last,
    "sums and ReLU in place": in_place,
}


def rewrite(network: nn.Module, inputs: tuple[Any, ...], seconds: float) -> tuple[nn.Module, list[Step]]:
    """The network with all steps that make it faster, and what was tried.

    Args:
        network: In evaluation mode; stays as it is. Only a traced one, such as ``shrink`` gives, is changed: it alone
            tells which operation comes before which.
        inputs: Arguments of its forward.
        seconds: How long to time each step.
    """
    steps: list[Step] = []
    if not isinstance(network, fx.GraphModule):
        return network, steps
    expected = outputs_of(network, inputs)
    for name, change in STEPS.items():
        changed = copy.deepcopy(network)
        count, failed = _apply(change, changed, inputs, expected)
        if failed:
            steps.append(Step(name, count, (), False, failed))
        elif count:
            first, second = (latencies([network, changed], inputs, seconds / 2) for _ in range(2))
            used = first[1] < first[0] and second[1] < second[0]
            steps.append(Step(name, count, tuple(first), used))
            network = changed if used else network
    return network, steps


def _apply(
    change: Callable[[fx.GraphModule, tuple[Any, ...]], int],
    network: fx.GraphModule,
    inputs: tuple[Any, ...],
    expected: list[Tensor],
) -> tuple[int, str]:
    """How many places were changed, and why the result cannot be used."""
    try:
        count = change(network, inputs)
        gap = difference(expected, outputs_of(_Forward(network), inputs))
    except (RuntimeError, ValueError) as error:  # a view of a shape that only the usual order of memory allows
        return 0, str(error.__cause__ or error).splitlines()[0]
    return count, f"its outputs differ by {gap:.1e}" if gap > tolerance(expected) else ""


class _Forward(nn.Module):
    """A traced network without what torch.fx prints when its call fails."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        return self.network.forward(*inputs)

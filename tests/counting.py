"""Counts the forwards and backwards of a network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Counts:
    """Evaluations since the last :meth:`take`, backwards as they pass the network's output."""

    def __init__(self, network: nn.Module) -> None:
        self.forwards = self.backwards = 0
        network.register_forward_hook(self._note)

    def _note(self, network: nn.Module, inputs: Any, output: Tensor) -> None:
        self.forwards += 1
        if output.requires_grad:
            output.register_hook(self._note_backward)

    def _note_backward(self, gradient: Tensor) -> None:
        self.backwards += 1

    def take(self) -> tuple[int, int]:
        """Forwards and backwards since the last time."""
        counts = self.forwards, self.backwards
        self.forwards = self.backwards = 0
        return counts

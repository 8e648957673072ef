"""Counts the forwards and backwards of a network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

#: Forwards and backwards of each. Not in the objects, as what hangs on a hook is put back after a trial.
_COUNTS: dict[int, list[int]] = {}


class Counts:
    """Evaluations since the last :meth:`take`, backwards as they pass the network's output."""

    def __init__(self, network: nn.Module) -> None:
        _COUNTS[id(self)] = [0, 0]
        network.register_forward_hook(self._note)

    def _note(self, network: nn.Module, inputs: Any, output: Tensor) -> None:
        _COUNTS[id(self)][0] += 1
        if output.requires_grad:
            output.register_hook(self._note_backward)

    def _note_backward(self, gradient: Tensor) -> None:
        _COUNTS[id(self)][1] += 1

    @property
    def forwards(self) -> int:
        """Forwards since the last time."""
        return _COUNTS[id(self)][0]

    def take(self) -> tuple[int, int]:
        """Forwards and backwards since the last time."""
        forwards, backwards = _COUNTS[id(self)]
        _COUNTS[id(self)] = [0, 0]
        return forwards, backwards

"""Forward, adjoint and trial sweeps over one batch (method §2, §5, §6)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.network.module_state import ModuleState
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.uninterrupted import uninterrupted
from lightning_bsqh.sweeps.fast_pooling import PoolingChoice


@dataclass(frozen=True)
class AdjointPass:
    """What a forward and adjoint sweep at w leaves for the iteration; −G is in every parameter's ``grad``.

    Attributes:
        loss: L_B(w), a scalar without a graph; None if there is nothing to do on this batch.
        trial: Runs a trial sweep at what the parameters hold and gives its loss, a scalar.
        resolution: Relative rounding error of the loss.
        undo: Takes back what the forward sweep has changed beside the parameters.
        undo_unless: The same for tensors alone, unless a boolean scalar of the device says otherwise.
        is_complete: Whether all data have been seen; in full-batch mode they come in pieces, and only with the last of
            them there is an iteration.
    """

    loss: Tensor | None
    trial: Callable[[], Tensor | float]
    resolution: float = 0.0
    undo: Callable[[], None] = lambda: None
    undo_unless: Callable[[Tensor], None] = lambda keep: None
    is_complete: bool = True


#: The module's state and the generators' when a forward sweep began; None where there is none.
Start = tuple[ModuleState | None, RandomState | None]


class Sweeps(ABC):
    """What one iteration needs from the problem: L_B and G at w once, then L_B at candidates.

    The parameters hold the point at which a sweep is done; the sweeps never change them.

    Args:
        devices: Where the network lives.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._devices = sorted(set(devices), key=str)
        self._trials_need_graph = False
        self._quick = PoolingChoice()

    @abstractmethod
    def forward_adjoint(self, closure: Callable[..., Any], boundaries: Boundaries | None = None) -> AdjointPass:
        """One forward and adjoint sweep at w.

        Args:
            closure: Computes the loss of the batch.
            boundaries: Records states and adjoints during the forward sweep; None if nobody needs them.
        """

    @abstractmethod
    def trial(self) -> Tensor | float:
        """One forward sweep at the candidate that the parameters hold; leaves no trace.

        Returns:
            The loss L_B(û), a scalar, possibly not finite.
        """

    def undo(self) -> None:
        """Takes back what the forward sweep has changed beside the parameters, for a batch that is skipped."""
        return

    def undo_unless(self, keep: Tensor) -> None:
        """The same for tensors alone, unless a boolean scalar of the device says otherwise."""
        return

    def starts(self) -> list[Start]:
        """Where the forward sweep of each batch at hand began, those of earlier steps included."""
        return []

    def take_back(self, stale: Sequence[Start]) -> None:
        """Puts module and generators back to where the forward sweep of a step began that has failed.

        Args:
            stale: What :meth:`starts` gave before the step: if nothing is newer, nothing has begun.
        """
        known = {id(each) for start in stale for each in start}
        for start in self.starts():
            if fresh := [each for each in start if each is not None and id(each) not in known]:
                with uninterrupted():
                    for each in fresh:
                        each.restore()
                return

    def resolution(self, loss: Tensor) -> float:
        """Relative rounding error of the loss; 0 in double precision, where differences are taken as they are."""
        return 0.0 if loss.dtype == torch.float64 else torch.finfo(loss.dtype).eps

    def pooling(self) -> AbstractContextManager[Any]:
        """What every forward, and nothing else, runs in: quicker pooling on a CPU, where there is some."""
        return self._quick.forward() if all(device.type == "cpu" for device in self._devices) else nullcontext()

    def _run_trial(self, evaluate: Callable[[], Tensor | float]) -> Tensor | float:
        """Evaluates without an autograd graph, unless the loss itself takes derivatives (gradient penalties)."""
        if not self._trials_need_graph:
            try:
                with torch.no_grad():
                    return evaluate()
            except RuntimeError as error:
                if "require grad" not in str(error) and "requires grad" not in str(error):
                    raise
        with torch.enable_grad():
            loss = evaluate()
        # Only now is it certain that the graph was what was missing.
        self._trials_need_graph = True
        return loss


def check_loss(loss: object, source: str, adjoint: bool = True) -> Tensor:
    """Returns ``loss`` if an adjoint sweep can start from it, else raises.

    Args:
        loss: What the user's function returned.
        source: What to call that function in the message.
        adjoint: Whether an adjoint sweep is to start from it.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is no real scalar or has no autograd graph.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"{source} must return the loss as a scalar tensor, got {type(loss).__name__}.")
    if loss.numel() != 1 or not loss.is_floating_point():
        raise ValueError(
            f"{source} must return a real scalar loss, got shape {tuple(loss.shape)} and dtype {loss.dtype};"
            " reduce it over the batch, for example with loss.mean()."
        )
    if adjoint and not loss.requires_grad:
        raise ValueError(
            f"{source} returned a loss without an autograd graph, so there is no adjoint sweep: do not detach it,"
            " do not compute it under torch.no_grad() and do not call backward on it."
        )
    return loss if adjoint else loss.detach()

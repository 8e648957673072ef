"""What a trial forward sweep may not do (method §6): leave a trace, or draw other random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightning_bsqh.network.module_state import ModuleState
from lightning_bsqh.network.random_state import RandomState


@contextmanager
def without_trace(
    module: nn.Module | None, start: RandomState, before: ModuleState | None, devices: Iterable[torch.device]
) -> Iterator[None]:
    """Runs a trial from where the forward sweep began and then undoes what it changed.

    Args:
        module: The network whose buffers and attributes are put back, None if unknown.
        start: The generators when the forward sweep began, so that the trial draws the same numbers.
        before: The module when the forward sweep began, so that J_B(û) and J_B(w) are the same function even if
            training_step counts its calls or fills a queue; None if unknown.
        devices: Devices whose generators the trial may use.
    """
    state = before.again() if before is not None else ModuleState(module) if module is not None else None
    after = RandomState.capture(devices)
    start.restore(after)
    if before is not None:
        before.restore()
    try:
        yield
    finally:
        after.restore()
        if state is not None:
            state.restore()

"""What a trial forward sweep may not do (method §6): leave a trace, or draw other random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from lightning_bsqh.network.module_state import Memory, ModuleState
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.recorders import resting
from lightning_bsqh.network.silence import silence


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
    if before is not None:
        # Left alone when it was looked at, written into by the forward sweep: from here on it is copied.
        before.memory.enliven(before.changed())
    state = before.again() if before is not None else ModuleState(module) if module is not None else None
    after = RandomState.capture(devices)
    start.restore(after)
    if before is not None:
        before.restore(state)
    try:
        with silence(), resting([] if state is None else state.with_hooks):
            yield
    finally:
        after.restore()
        if state is not None:
            lost = state.changed()
            state.restore()
            if lost:
                _tell(state.memory, lost)


def _tell(memory: Memory, lost: list[object]) -> None:
    """Says what a trial has changed for good, once for each."""
    names = memory.not_told_before(lost)
    memory.enliven(lost)
    if names:
        rank_zero_warn(
            f"A trial has changed {', '.join(names)} in a way that cannot be put back: a trial runs training_step (or"
            " the closure) again on the same batch. Move this out of training_step, or define"
            " trial_loss(self, batch, batch_idx) on the module, which trials call instead."
        )

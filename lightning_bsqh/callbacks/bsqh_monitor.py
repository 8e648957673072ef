"""The three monitors in one."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lightning_bsqh.callbacks.augmentation_monitor import AugmentationMonitor
from lightning_bsqh.callbacks.hamiltonian_monitor import HamiltonianMonitor
from lightning_bsqh.callbacks.sparsity_monitor import SparsityMonitor
from lightning_bsqh.namespace import pl


class BSQHMonitor(pl.Callback):
    """AugmentationMonitor, HamiltonianMonitor and SparsityMonitor, all at the same steps.

    Args:
        every_n_steps: Measure every so many batches, at least 1. None follows the Trainer's ``log_every_n_steps``.
        prog_bar: Whether the progress bar shows ε and the sparsity.

    Raises:
        ValueError: If ``every_n_steps`` is less than 1.
        TypeError: At the start of the fit, if it is not bSQH that trains; SparsityMonitor works with any optimizer.
    """

    def __init__(self, every_n_steps: int | None = 50, prog_bar: bool = True) -> None:
        self.augmentation = AugmentationMonitor(every_n_steps, prog_bar)
        self.hamiltonian = HamiltonianMonitor(every_n_steps)
        self.sparsity = SparsityMonitor(every_n_steps, prog_bar)

    @override
    def on_fit_start(self, *args: Any) -> None:
        self.augmentation.on_fit_start(*args)
        self.hamiltonian.on_fit_start(*args)

    @override
    def on_train_start(self, *args: Any) -> None:
        self.sparsity.on_train_start(*args)

    @override
    def on_train_batch_start(self, *args: Any) -> None:
        self.hamiltonian.on_train_batch_start(*args)

    @override
    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.augmentation.on_train_batch_end(*args, **kwargs)
        self.hamiltonian.on_train_batch_end(*args, **kwargs)
        self.sparsity.on_train_batch_end(*args, **kwargs)

    @override
    def on_train_end(self, *args: Any) -> None:
        self.augmentation.on_train_end(*args)
        self.sparsity.on_train_end(*args)

    @override
    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self.augmentation.teardown(*args, **kwargs)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.augmentation.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.augmentation.load_state_dict(state_dict)

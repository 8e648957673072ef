"""Logs Hamiltonian, gain of the augmented Hamiltonian and PMP residual, in all and by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lightning_bsqh._validation import integer
from lightning_bsqh.callbacks._logging import is_due, layer_keys, show, write
from lightning_bsqh.callbacks._training import bsqh_optimizer
from lightning_bsqh.method.report import LayerReport
from lightning_bsqh.namespace import pl


class HamiltonianMonitor(pl.Callback):
    """Logs ``hamiltonian/…``, ``augmented_hamiltonian/gain/<layer>`` and ``pmp_residual/…`` of single iterations.

    ``hamiltonian/<layer>`` is H_l(w_l) = ⟨G_l, w_l⟩ − ρR_l(w_l) at the iteration's w; ``pmp_residual/<layer>`` is
    max K_ε(·; w) − K_ε(w; w) with the ε of the iteration's first trial; ``augmented_hamiltonian/gain/<layer>`` is
    K_ε(û; w) − K_ε(w; w) of the last candidate, the same if the first was accepted. All are on the batch, in the units
    of the loss, and of the linearization for layers that are not affine in their parameters. Where R couples layers,
    as ``Cardinality`` does, a layer that gives up weights for others has a part below zero; the totals are not
    below zero but where a constraint has just been tightened. No other sweep is done. Loggers get all, other
    callbacks the totals.

    Args:
        every_n_steps: Measure every so many batches (in full-batch mode: iterations), at least 1. None follows the
            Trainer's ``log_every_n_steps``.

    Raises:
        ValueError: If ``every_n_steps`` is less than 1.
        TypeError: At the start of the fit, if it is not bSQH that trains.
    """

    def __init__(self, every_n_steps: int | None = 50) -> None:
        self.every_n_steps = None if every_n_steps is None else integer("every_n_steps", every_n_steps, low=1)
        self._logged: Mapping[str, LayerReport] | None = None

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        bsqh_optimizer(trainer, type(self).__name__)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        optimizer = bsqh_optimizer(trainer, type(self).__name__)
        done = optimizer.iterations if optimizer.full_batch is not None else trainer.global_step
        optimizer.record_layers = is_due(self.every_n_steps, trainer, done + 1)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        optimizer = bsqh_optimizer(trainer, type(self).__name__)
        layers = optimizer.last_layers
        # In full-batch mode the batches until the next iteration find the same report.
        if optimizer.record_layers and layers is not None and layers is not self._logged:
            values = hamiltonian_values(layers)
            show(pl_module, {key: values[key] for key in ("hamiltonian/total", "pmp_residual/total")}, in_bar=None)
            write(trainer, values)
            self._logged = layers
        optimizer.record_layers = False


def hamiltonian_values(layers: Mapping[str, LayerReport]) -> dict[str, float]:
    """The values that :class:`HamiltonianMonitor` logs, by their keys."""
    values = {
        "hamiltonian/total": math.fsum(layer.hamiltonian for layer in layers.values()),
        "pmp_residual/total": math.fsum(layer.residual for layer in layers.values()),
    }
    hamiltonian, residual = layer_keys("hamiltonian", layers), layer_keys("pmp_residual", layers)
    for name, layer in layers.items():
        values[hamiltonian[name]] = layer.hamiltonian
        values[residual[name]] = layer.residual
        values[f"augmented_hamiltonian/gain/{name}"] = layer.gain
    return values

"""Trainings that have to be the same in one process and in two: options of :func:`tests.processes.training.fit`."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.amp import GradScaler
from typing_extensions import override

from lightning_bsqh import (
    L0,
    L1,
    L2,
    NM,
    Backtracking,
    Box,
    Budget,
    Cardinality,
    Curvature,
    Discrete,
    ElasticNet,
    GroupL0,
    LHalf,
    LTwoThirds,
)
from tests.processes.networks import Checkpointed, InFull, Manual, Thawing, bent_network, together_network
from tests.processes.training import BATCH, STEPS, Classes

# From starts at which some trials are rejected.
CURVATURE, BACKTRACKING = partial(Curvature, epsilon=2.0), partial(Backtracking, epsilon=5.0, sigma=1.5, zeta=0.9)
# Two micro-batches to a pass.
_FULL = {"batch_mode": "full", "max_steps": -1, "max_epochs": STEPS, "kappa": 0.0, "samples": 2 * BATCH}


def scaler() -> list[MixedPrecision]:
    """The plugin that the Trainer makes of precision="16-mixed" for an accelerator."""
    return [MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=1024.0))]


_SCALED: dict[str, Any] = {"module": InFull, "plugins": scaler}


class AccumulatesLater(L.Callback):
    """Tells the Trainer in the second epoch, of which nobody knows before."""

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.accumulate_grad_batches = 2


OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "euclidean": {"metric": "euclidean"},
    "jacobi, curvature": {"augmentation": CURVATURE()},
    "jacobi, backtracking": {"augmentation": BACKTRACKING()},
    "gauss-seidel, curvature": {"sweep": "gauss-seidel", "augmentation": CURVATURE()},
    "gauss-seidel, backtracking": {"sweep": "gauss-seidel", "augmentation": BACKTRACKING()},
    "full batch, curvature": {**_FULL, "augmentation": CURVATURE()},
    "full batch, backtracking": {**_FULL, "augmentation": BACKTRACKING()},
    "full batch, no reuse": {**_FULL, "reuse": False},
    "true K, jacobi": {"module": lambda: Classes(bent_network()), "augmentation": CURVATURE()},
    "true K, gauss-seidel": {"module": lambda: Classes(bent_network()), "sweep": "gauss-seidel"},
    "true K, full batch": {**_FULL, "module": lambda: Classes(bent_network()), "max_epochs": 10},
    "checkpointed": {"module": Checkpointed},
    "unfrozen later": {"module": Thawing},
    "untested steps": {"trial_every": "auto", "max_steps": 100},
    "static graph": {"static_graph": True},
    "accumulated": {"accumulate_grad_batches": 2, "augmentation": CURVATURE()},
    "accumulated, backtracking": {"accumulate_grad_batches": 3, "augmentation": BACKTRACKING()},
    "normalized together": {"module": lambda: Classes(together_network()), "augmentation": CURVATURE()},
    "normalized together, backtracking": {
        "module": lambda: Classes(together_network()),
        "augmentation": BACKTRACKING(),
    },
    "unused parameters": {"find_unused_parameters": True},
    "manual": {"module": Manual, "augmentation": BACKTRACKING()},
    "manual, gauss-seidel": {"module": Manual, "sweep": "gauss-seidel", "augmentation": CURVATURE()},
    "manual, true K": {"module": lambda: Manual(bent_network())},
    "manual, twice": {"module": partial(Manual, steps=2), "regularizer": L0(rho=1e-4), "augmentation": CURVATURE()},
    "manual, static graph": {"module": Manual, "static_graph": True},
    "manual, unused parameters": {"module": Manual, "find_unused_parameters": True},
    "accumulated by a schedule": {
        "callbacks": lambda: [GradientAccumulationScheduler({0: 1, 2: 3, 6: 2})],
        "augmentation": CURVATURE(),
    },
    "accumulated later": {"callbacks": lambda: [AccumulatesLater()], "augmentation": CURVATURE()},
    "scaled": {**_SCALED, "augmentation": BACKTRACKING()},
    "scaled, gauss-seidel": {**_SCALED, "sweep": "gauss-seidel"},
    "scaled, true K": {**_SCALED, "module": lambda: InFull(bent_network())},
    "scaled, accumulated": {**_SCALED, "accumulate_grad_batches": 2, "augmentation": CURVATURE()},
}
_REGULARIZERS = {
    "L0": L0(rho=1e-4),
    "L1": L1(rho=1e-3),
    "L2": L2(rho=1e-3),
    "elastic net": ElasticNet(1e-3, 1e-3),
    "half": LHalf(rho=1e-3),
    "two thirds": LTwoThirds(rho=1e-3),
    "groups": GroupL0(rho=1e-3),
    "groups of inputs": GroupL0(rho=1e-2, groups="input", weight="size"),
    "cardinality of groups": Cardinality(0.5, groups="output"),
    "cardinality of groups of inputs": Cardinality(0.5, groups="input", multiple=2),
    "budget": Budget(0.4).with_costs([1, 3, 2]),
    "cardinality": Cardinality(0.7),
    "cardinality by rows": Cardinality(0.5, scope="row"),
    "pattern": NM(1, 2),
    "box": Box(-0.6, 0.6, L0(rho=1e-4)),
    "sum": Cardinality(0.7) + L2(rho=1e-3),
    "discrete": Discrete([-0.5, 0.0, 0.5]),
    "by names": {"net.0": GroupL0(rho=1e-3), "net.2": Cardinality(0.6)},
}
OPTIONS |= {name: {"regularizer": r, "augmentation": CURVATURE()} for name, r in _REGULARIZERS.items()}
# Whose maximizer is one layer's own affair.
OPTIONS |= {
    f"gauss-seidel, {name}": {"regularizer": _REGULARIZERS[name], "sweep": "gauss-seidel"}
    for name in ("L0", "L1", "groups", "discrete")
}
# Every sweep once, in the time that there is; all with `make test-all`.
_ALWAYS: tuple[str, ...] = (
    "as it comes",
    "untested steps",
    "jacobi, backtracking",
    "gauss-seidel, backtracking",
    "full batch, backtracking",
)
_ALWAYS += ("accumulated, backtracking", "normalized together", "budget", "cardinality of groups")
_ALWAYS += ("manual", "accumulated by a schedule", "scaled")
#: Those that are tested now.
TESTED = list(OPTIONS) if os.environ.get("ALL_PROCESS_TESTS") else list(_ALWAYS)

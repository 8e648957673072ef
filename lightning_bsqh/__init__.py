"""Trains sparse networks from scratch by the batch sequential quadratic Hamiltonian method."""

from lightning_bsqh.certificate.residual import LayerResidual, PMPResidual, pmp_residual
from lightning_bsqh.method.augmentation import Augmentation, Backtracking
from lightning_bsqh.method.curvature import Curvature
from lightning_bsqh.method.report import StepReport
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.regularizers import (
    L0,
    L1,
    L2,
    NM,
    Box,
    Budget,
    Cardinality,
    Discrete,
    ElasticNet,
    GroupL0,
    LHalf,
    LTwoThirds,
    Regularizer,
    check_regularizer,
)
from lightning_bsqh.strategy.strategy import BSQHStrategy
from lightning_bsqh.wandb.workspace import build_workspace

__version__ = "0.2.0"

__all__ = [
    "L0",
    "L1",
    "L2",
    "NM",
    "Augmentation",
    "BSQHOptimizer",
    "BSQHStrategy",
    "Backtracking",
    "Box",
    "Budget",
    "Cardinality",
    "Curvature",
    "Discrete",
    "ElasticNet",
    "GroupL0",
    "LHalf",
    "LTwoThirds",
    "LayerResidual",
    "PMPResidual",
    "Regularizer",
    "StepReport",
    "__version__",
    "build_workspace",
    "check_regularizer",
    "pmp_residual",
]

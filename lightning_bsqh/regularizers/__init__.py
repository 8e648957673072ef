"""Regularisers: their value ρR(u) and their maximiser (a prox) in the metric D."""

from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.cardinality import Cardinality
from lightning_bsqh.regularizers.l0 import L0
from lightning_bsqh.regularizers.l1 import L1
from lightning_bsqh.regularizers.l2 import L2

__all__ = ["L0", "L1", "L2", "Cardinality", "MetricWeight", "Regularizer"]

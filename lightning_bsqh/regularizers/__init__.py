"""Regularizers: their value ρR(u) and their maximizer (a prox) in the metric D."""

from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.box import Box
from lightning_bsqh.regularizers.budget import Budget
from lightning_bsqh.regularizers.by_name import ByName
from lightning_bsqh.regularizers.cardinality import Cardinality
from lightning_bsqh.regularizers.checking import check_regularizer
from lightning_bsqh.regularizers.discrete import Discrete
from lightning_bsqh.regularizers.elastic_net import ElasticNet
from lightning_bsqh.regularizers.group_l0 import GroupL0
from lightning_bsqh.regularizers.l0 import L0
from lightning_bsqh.regularizers.l1 import L1
from lightning_bsqh.regularizers.l2 import L2
from lightning_bsqh.regularizers.l_half import LHalf
from lightning_bsqh.regularizers.l_two_thirds import LTwoThirds
from lightning_bsqh.regularizers.nm import NM
from lightning_bsqh.regularizers.sums import WithL2

__all__ = [
    "L0",
    "L1",
    "L2",
    "NM",
    "Box",
    "Budget",
    "ByName",
    "Cardinality",
    "Discrete",
    "ElasticNet",
    "GroupL0",
    "LHalf",
    "LTwoThirds",
    "MetricWeight",
    "Regularizer",
    "WithL2",
    "check_regularizer",
]

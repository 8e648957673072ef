"""How near a network is to satisfying the maximum principle."""

from lightning_bsqh.certificate.residual import pmp_residual
from lightning_bsqh.certificate.result import LayerResidual, PMPResidual

__all__ = ["LayerResidual", "PMPResidual", "pmp_residual"]

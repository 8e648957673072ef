"""How near a network is to satisfying the maximum principle."""

from lightning_bsqh.certificate.residual import LayerResidual, PMPResidual, pmp_residual

__all__ = ["LayerResidual", "PMPResidual", "pmp_residual"]

"""R(u) = ‖u‖_{1/2}^{1/2}."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.regularizers.fractional import Fractional


class LHalf(Fractional):
    """ρ Σ√|u_i|, maximized by the half threshold (method §3, row L^{1/2}).

    With λ = ρ/(εD): û = 0 if |z| ≤ (54^{1/3}/4)·λ^{2/3}, else (2/3)·z·(1 + cos(2π/3 − 2φ/3)) with
    cos φ = (λ/8)·(|z|/3)^{−3/2}.

    Source: Z. Xu, X. Chang, F. Xu, H. Zhang, "L1/2 regularization: a thresholding representation theory and
    a fast solver", IEEE Trans. Neural Netw. Learn. Syst. 23 (2012) 1013-1027.

    Args:
        rho: Factor ρ ≥ 0, in units of the loss per square root of a unit of weight.

    Raises:
        TypeError: If ``rho`` is no number.
        ValueError: If it is negative or not finite.
    """

    power = 0.5

    @override
    def _threshold_(self, z: Tensor, strength: Tensor) -> None:
        scale = strength.pow(2.0 / 3.0)
        zero = z.abs() <= 54.0 ** (1.0 / 3.0) / 4.0 * scale
        # cos φ in terms of λ^{2/3}/|z|, which is bounded where z is kept, however small both are.
        phi = torch.arccos((3.0 * scale / z.abs()).pow(1.5) / 8.0)
        z.mul_((1.0 + torch.cos((2.0 * math.pi - 2.0 * phi) / 3.0)) * (2.0 / 3.0)).masked_fill_(zero, 0.0)

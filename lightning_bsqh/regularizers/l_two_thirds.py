"""R(u) = ‖u‖_{2/3}^{2/3}."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.regularizers.fractional import Fractional


class LTwoThirds(Fractional):
    """ρ Σ|u_i|^{2/3}, maximized by the two-thirds threshold (method §3, row L^{2/3}).

    With λ = ρ/(εD) and μ = λ/|z|^{4/3}: û = 0 if |z| ≤ (2/3)·(3λ³)^{1/4}, else z·t³, where t is the largest
    root of t⁴ − t + μ/3 = 0: t = (A + √(2/A − A²))/2, A² = (2/3)(q + μ/q),
    q³ = (27/16)(1 + √(1 − (16/27)²μ³)). The paper's A is the same, written with cosh and arccosh, which
    overflow for small λ.

    Source: W. Cao, J. Sun, Z. Xu, "Fast image deconvolution using closed-form thresholding formulas of L_q
    (q = 1/2, 2/3) regularization", J. Vis. Commun. Image Represent. 24 (2013) 31-41.

    Args:
        rho: Factor ρ ≥ 0, in units of the loss per unit of weight to the power 2/3.

    Raises:
        TypeError: If ``rho`` is no number.
        ValueError: If it is negative or not finite.
    """

    power = 2.0 / 3.0

    @override
    def _threshold_(self, z: Tensor, strength: Tensor) -> None:
        scale = strength.pow(0.75)
        zero = z.abs() <= 2.0 / 3.0 * 3.0**0.25 * scale
        mu = (scale / z.abs()).pow(4.0 / 3.0)
        q = (27.0 / 16.0 * (1.0 + torch.sqrt(1.0 - (16.0 / 27.0) ** 2 * mu.pow(3)))).pow(1.0 / 3.0)
        a_square = 2.0 / 3.0 * (q + mu / q)
        a = a_square.sqrt()
        root = (a + torch.sqrt(2.0 / a - a_square)) / 2.0
        z.mul_(root.pow(3)).masked_fill_(zero, 0.0)

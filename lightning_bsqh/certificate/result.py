"""What a certificate says, and how it is printed (method §9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_bsqh._validation import number


@dataclass(frozen=True)
class LayerResidual:
    """How far one layer is from the maximum condition.

    Attributes:
        name: The layer, such as ``"features.0"``.
        residual: K_ε(û; u) − K_ε(u; u) summed over the layer's weights, û the maximizer. At least zero up to
            rounding, except where R couples the layers: then it is the layer's part of the gain of the global
            maximizer, and below zero in a layer that gives up weights in favor of others.
        hamiltonian: H_l(u_l) = ⟨G_l, u_l⟩ − ρR_l(u_l).
        hamiltonian_gap: max H_l − H_l(u_l) ≥ 0, without any ε, over those of the layer's weights whose admissible set
            is compact (a Box with two ends, or Discrete), the others held at u; for Cardinality the layer's part of the
            global maximum. None where there are none, or the maximum is not known.
        linearized: Whether the layer is not known to be affine in its parameters; all numbers are then those
            of its linearization at u.
        sampled: For a linearized layer that can be run alone: the largest K_ε(v; u) − K_ε(u; u) ≥ 0 of the true K that
            was found among sampled points v, a lower bound of the layer's true residual. None for the others.
        gains: The part of every single weight in ``residual``, shape ``[n]``, double precision. Where R is no
            sum over elements, every weight of a tensor carries the gain of the whole tensor.
    """

    name: str
    residual: float
    hamiltonian: float
    hamiltonian_gap: float | None
    linearized: bool
    sampled: float | None
    gains: Tensor = field(repr=False, compare=False)

    def satisfied(self, tolerance: float) -> float:
        """Share of the layer's weights that satisfy the maximum condition, see :meth:`PMPResidual.satisfied`."""
        return _within(self.gains, number("tolerance", tolerance, low=0.0)) / self.gains.numel()


@dataclass(frozen=True)
class PMPResidual:
    """How far weights u are from the maximum condition of Pontryagin's principle (method §9).

    Attributes:
        total: r = max K_ε(·; u) − K_ε(u; u) ≥ 0 (up to rounding) over all layers together; zero exactly where
            û = u maximizes K_ε. Exact also for an R that couples the layers.
        hamiltonian: Σ_l⟨G_l, u_l⟩ − ρR(u).
        hamiltonian_gap: max H − H(u) over all weights whose admissible set is compact, see :class:`LayerResidual`;
            None if there are none. Zero exactly where u satisfies the maximum condition of these weights itself.
        loss: L(u).
        epsilon: The ε of K_ε.
        coupled: Whether R couples the layers, as ``Cardinality`` does; the numbers of a single layer are then
            its part of the global maximizer.
        layers: The same per layer, by name, in the order of the network.
    """

    total: float
    hamiltonian: float
    hamiltonian_gap: float | None
    loss: float
    epsilon: float
    coupled: bool
    layers: Mapping[str, LayerResidual]

    @property
    def linearized(self) -> tuple[str, ...]:
        """Names of the layers not known to be affine in their parameters; for them nothing is certified."""
        return tuple(name for name, layer in self.layers.items() if layer.linearized)

    def satisfied(self, tolerance: float) -> float:
        """Share of the weights that satisfy the maximum condition up to ``tolerance``.

        All trained parameters are counted, biases included. Weight i satisfies the condition if replacing u_i by
        û_i changes K_ε by at most the tolerance: |G_i s_i − ρ[R(û_i) − R(u_i)] − εD_i s_i²| ≤ tolerance with
        s = û − u. For an R that is a sum over elements (L0, L1, L2) this is max K_ε − K_ε(u) along that
        coordinate. For Cardinality it is the weight's part of the global maximizer, which is below zero for a
        weight that is given up, hence the modulus. For any other R, every weight of a tensor counts with
        the gain of the whole tensor, so that the share is a lower bound.

        Args:
            tolerance: At least 0, in units of the loss.
        """
        tolerance = number("tolerance", tolerance, low=0.0)
        total = sum(layer.gains.numel() for layer in self.layers.values())
        return sum(_within(layer.gains, tolerance) for layer in self.layers.values()) / total

    def __str__(self) -> str:
        width = max(len(name) for name in (*self.layers, "total"))
        lines = [f"{'layer':<{width}}  {'residual':>10}  {'H':>11}  {'to 1e-3':>8}  {'to 1e-6':>8}"]

        def row(name: str, residual: float, hamiltonian: float, share: Callable[[float], float], note: str) -> str:
            shares = f"{share(1e-3):8.2%}  {share(1e-6):8.2%}"
            return f"{name:<{width}}  {residual:10.3e}  {hamiltonian:11.3e}  {shares}{note}"

        for layer in self.layers.values():
            note = "  linearized" if layer.linearized else ""
            if layer.sampled is not None:
                note += f", true K: at least {layer.sampled:.3e}"
            lines.append(row(layer.name, layer.residual, layer.hamiltonian, layer.satisfied, note))
        lines.append(row("total", self.total, self.hamiltonian, self.satisfied, ""))
        if self.hamiltonian_gap is not None:
            lines.append(f"max H - H over the weights in a box or on levels: {self.hamiltonian_gap:.3e}")
        if self.coupled:
            lines.append("The regularizer couples the layers: a layer's row is its part of the global maximizer.")
        if self.linearized:
            lines.append(
                "linearized: not known to be affine in its parameters; the numbers are those of its linearization."
            )
        if any(layer.sampled is not None for layer in self.layers.values()):
            lines.append("true K: a lower bound of the layer's true residual, found by sampling.")
        return "\n".join(lines)


def _within(gains: Tensor, tolerance: float) -> int:
    return int(torch.count_nonzero(gains.abs() <= tolerance))

"""How many weights each tensor keeps by the rule of Erdős and Rényi."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=64)
def erdos_renyi_counts(shapes: tuple[tuple[int, ...], ...], kept: int, minimum: int) -> tuple[int, ...]:
    """Numbers of weights in proportion to the sums of the tensors' dimensions, so that small tensors stay denser.

    Source: D. C. Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity
    inspired by network science", Nature Communications 9 (2018) 2383; with the kernel's dimensions in the sum as in
    U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the lottery", ICML 2020.

    Args:
        shapes: Of the tensors.
        kept: Sum of the numbers, at least what the tensors keep in any case and at most their sizes.
        minimum: What each tensor keeps in any case, or all of it if it has fewer.

    Returns:
        For each tensor c·Σ dims, between the minimum and its size, rounded so that the sum is ``kept``.
    """
    sizes = [math.prod(shape) for shape in shapes]
    least = [min(minimum, size) for size in sizes]

    def wanted(c: float) -> list[float]:
        rows = zip(shapes, least, sizes, strict=True)
        return [min(max(c * sum(shape), float(few)), float(size)) for shape, few, size in rows]

    low, high = 0.0, float(max(sizes, default=0))
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if sum(wanted(middle)) < kept else (low, middle)
    return _rounded(wanted(high), kept, sizes)


def _rounded(wanted: Sequence[float], kept: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Whole numbers with the sum ``kept``: rounded down, and up where the rest is largest, the first of equal ones."""
    # What the search left of a whole number is none.
    counts = [math.floor(value + 1e-6) for value in wanted]
    order = sorted(range(len(wanted)), key=lambda i: counts[i] - wanted[i])
    while (missing := kept - sum(counts)) > 0:
        for i in [i for i in order if counts[i] < sizes[i]][:missing]:
            counts[i] += 1
    return tuple(counts)

"""Exact selection of the largest of many scores."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Marks the ``count`` largest scores; among equal ones those that come first.

    Args:
        scores: Non-negative scores, shape ``[n]``, any floating dtype.
        count: How many to keep, 0 ≤ count ≤ n.

    Returns:
        A boolean mask, shape ``[n]``, with exactly ``count`` entries set.
    """
    n = scores.numel()
    if count >= n:
        return torch.ones_like(scores, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = torch.kthvalue(scores, n - count + 1).values
    keep = scores > threshold
    missing = count - int(keep.sum())
    # Usually one score equals the threshold; ties are filled in order, so that the result is deterministic.
    ties = torch.nonzero(scores == threshold).flatten()[:missing]
    keep[ties] = True
    return keep

"""Exact selection of the largest of many scores."""

from __future__ import annotations

import math

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
    threshold = _kth_smallest(scores, n - count + 1)
    keep = scores >= threshold
    if int(torch.count_nonzero(keep)) > count:
        # Of those that equal the threshold the first are taken, so that the result is deterministic.
        keep = scores > threshold
        missing = count - int(torch.count_nonzero(keep))
        keep[torch.nonzero(scores == threshold).flatten()[:missing]] = True
    return keep


#: From this size on a sample pays.
_LARGE = 1 << 15
_SAMPLE = 1 << 11


def _kth_smallest(scores: Tensor, rank: int) -> Tensor:
    """What ``torch.kthvalue`` gives, by looking only at scores near those of the same rank in a sample."""
    n = scores.numel()
    if n >= _LARGE:
        sample = scores[:: n // _SAMPLE]
        size = sample.numel()
        share = rank / n
        # Four standard deviations of a rank in a random sample; if that misses, all scores are looked at.
        margin = 4.0 * math.sqrt(share * (1.0 - share) / size) + 1.0 / size
        low = _ranked(sample, 1 + max(math.floor((share - margin) * size), 0))
        high = _ranked(sample, 1 + min(math.ceil((share + margin) * size), size - 1))
        not_below = scores >= low
        below = n - int(torch.count_nonzero(not_below))
        near = scores[not_below & (scores <= high)]
        if below < rank <= below + near.numel():
            return _ranked(near, rank - below)
    return _ranked(scores, rank)


def _ranked(scores: Tensor, rank: int) -> Tensor:
    # On CUDA kthvalue is refused under Trainer(deterministic=True), and sorting is quick.
    return scores.sort().values[rank - 1] if scores.is_cuda else torch.kthvalue(scores, rank).values

"""Exact selection of the largest of many scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Marks the ``count`` largest scores; among equal ones those that come first.

    On an accelerator the host does not wait for the result.

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
    if not _on_host(scores):
        return _keep_on_device(scores, count)
    threshold = _kth_smallest(scores, n - count + 1)
    keep = scores >= threshold
    if int(torch.count_nonzero(keep)) > count:
        # Of those that equal the threshold the first are taken, so that the result is deterministic.
        keep = scores > threshold
        missing = count - int(torch.count_nonzero(keep))
        keep[torch.nonzero(scores == threshold).flatten()[:missing]] = True
    return keep


def _on_host(scores: Tensor) -> bool:
    return scores.device.type == "cpu"


def _keep_on_device(scores: Tensor, count: int) -> Tensor:
    """The same without a number that the host has to know."""
    threshold = _kth_largest(scores, count)
    keep = scores > threshold
    tied = scores == threshold
    # In int32, which takes half the memory, as long as it can count them.
    counter = torch.int32 if scores.numel() < 2**31 else torch.int64
    first = tied.cumsum(0, dtype=counter) <= count - keep.sum()
    return keep.logical_or_(tied.logical_and_(first))


def _kth_largest(scores: Tensor, count: int) -> Tensor:
    """The ``count``-th largest score, 1 ≤ count ≤ n, by the shorter of the two lists that end with it."""
    # On CUDA kthvalue is slow for one long row, and refused under Trainer(deterministic=True).
    others = scores.numel() - count + 1
    if count <= others:
        largest = torch.topk(scores, count, sorted=False).values
        # NaN counts as largest; a minimum would be NaN, too.
        return largest.masked_fill_(largest.isnan(), math.inf).min()
    return torch.topk(scores, others, largest=False, sorted=False).values.max()


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
        low = torch.kthvalue(sample, 1 + max(math.floor((share - margin) * size), 0)).values
        high = torch.kthvalue(sample, 1 + min(math.ceil((share + margin) * size), size - 1)).values
        not_below = scores >= low
        below = n - int(torch.count_nonzero(not_below))
        near = scores[not_below & (scores <= high)]
        if below < rank <= below + near.numel():
            return torch.kthvalue(near, rank - below).values
    return torch.kthvalue(scores, rank).values

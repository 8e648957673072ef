"""Exact selection of the largest of many scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_bsqh.foreach import plus, scalars


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


def keep_largest_overall(scores: Tensor, count: int, sizes: Sequence[int], minimum: int) -> Tensor:
    """Marks the ``count`` largest scores of several tensors, of which each keeps some in any case (method §3).

    Args:
        scores: Non-negative scores of all tensors one after the other, shape ``[n]``.
        count: How many to keep over all, at least as many as the tensors keep in any case.
        sizes: Number of scores of each tensor.
        minimum: What each tensor keeps at least, all of it if it has fewer.

    Returns:
        A boolean mask, shape ``[n]``, with exactly ``count`` entries set, of the largest sum of scores.
    """
    least = [min(minimum, size) for size in sizes]
    if len(sizes) < 2 or minimum == 0 or count >= scores.numel():
        return keep_largest(scores, count)
    if _on_host(scores):
        keep = keep_largest(scores, count)
        if _have(keep.split(list(sizes)), least):
            return keep
    # The best of each tensor, which no score is larger than then, and of all others those that are best overall.
    return keep_largest(scores.index_fill(0, _best_of_each(scores, sizes, least), math.inf), count)


def keep_largest_in_rows(scores: Tensor, count: int) -> Tensor:
    """Marks the ``count`` largest scores of every row; among equal ones those that come first.

    Args:
        scores: Non-negative scores, shape ``[rows, n]``.
        count: How many to keep in a row, 0 ≤ count ≤ n.

    Returns:
        A boolean mask of that shape.
    """
    if count >= scores.shape[1] or scores.numel() == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if _on_host(scores):
        threshold = torch.kthvalue(scores, scores.shape[1] - count + 1, dim=1, keepdim=True).values
    else:
        threshold = torch.topk(scores, count, dim=1).values[:, -1:]
    return _above(scores, threshold, count)


def keep_largest_of_few(scores: Tensor, count: int) -> Tensor:
    """The same for many short rows, by comparing all scores of a row with each of them."""
    before = torch.zeros(scores.shape, dtype=torch.int16, device=scores.device)
    for i in range(scores.shape[1]):
        other = scores[:, i : i + 1]
        before[:, :i].add_(other > scores[:, :i])
        before[:, i + 1 :].add_(other >= scores[:, i + 1 :])
    return before < count


def keep_blocks(scores: Sequence[Tensor], count: int, multiple: int, minimum: int) -> Tensor:
    """Marks the largest scores of several tensors, of each as many as a multiple says, or all.

    Each tensor's scores, the largest first, are cut into blocks; the last may be smaller. As the sums of a tensor's
    blocks fall, the best blocks of all are the first ones of each.

    Args:
        scores: Non-negative scores, one dimension each.
        count: How many blocks to keep over all.
        multiple: Scores in a block.
        minimum: Blocks that each tensor keeps at least, or all that it has.

    Returns:
        A boolean mask for all tensors one after the other.
    """
    ordered = [s.sort(stable=True, descending=True) for s in scores]
    sums = [pad(o.values, (0, -o.values.numel() % multiple)).view(-1, multiple).sum(1) for o in ordered]
    sizes = [s.numel() for s in sums]
    keep = keep_largest_overall(torch.cat(sums), count, sizes, minimum)
    masks = []
    for o, part in zip(ordered, keep.split(sizes), strict=True):
        ranked = part.repeat_interleave(multiple)[: o.values.numel()]
        masks.append(torch.zeros_like(ranked).scatter_(0, o.indices, ranked))
    return torch.cat(masks)


def keep_best_within(
    scores: Tensor, sizes: Sequence[int], costs: Sequence[int], budget: int, least: Sequence[int]
) -> Tensor:
    """Marks the scores that are largest for their cost, as long as the budget lasts; of equal ones the first.

    Args:
        scores: Non-negative scores of several tensors one after the other, shape ``[n]``.
        sizes: Number of scores of each tensor.
        costs: What each score of a tensor costs.
        budget: What they may cost together, at least what each tensor keeps in any case.
        least: How many each tensor keeps in any case.

    Returns:
        A boolean mask, shape ``[n]``.
    """
    own = torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, _best_of_each(scores, sizes, least), True)
    each = zip(sizes, costs, strict=True)
    cost = torch.cat([torch.full((n,), c, dtype=torch.int64, device=scores.device) for n, c in each])
    order = (scores / cost).masked_fill_(own, -1.0).sort(stable=True, descending=True).indices
    left = budget - sum(c * few for c, few in zip(costs, least, strict=True))
    fits = cost.masked_fill_(own, 0).gather(0, order).cumsum(0) <= left
    return torch.zeros_like(own).scatter_(0, order, fits).logical_or_(own)


def _have(keep: Sequence[Tensor], counts: Sequence[int]) -> bool:
    """Whether so many entries of each are set, by a look at the first ones where that will do."""
    found = scalars([torch.count_nonzero(part[:4096]) for part in keep]).tolist()
    pairs = zip(keep, counts, found, strict=True)
    return all(first >= count or int(torch.count_nonzero(part)) >= count for part, count, first in pairs)


def _best_of_each(scores: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Positions of the largest scores of each tensor, so many as ``counts`` says, of equal ones the first."""
    if set(counts) == {1}:
        firsts = accumulate([0, *sizes[:-1]])
        return torch.stack(plus([part.argmax() for part in scores.split(list(sizes))], list(firsts)))
    found, starts = [], []
    for part, start, count in zip(scores.split(list(sizes)), accumulate([0, *sizes]), counts, strict=False):
        if count > 0:
            best = part.argmax().view(1) if count == 1 else part.sort(stable=True, descending=True).indices[:count]
            found.append(best)
            starts.append(start)
    return torch.cat(plus(found, starts)) if found else torch.zeros(0, dtype=torch.int64, device=scores.device)


def _on_host(scores: Tensor) -> bool:
    return scores.device.type == "cpu"


def _keep_on_device(scores: Tensor, count: int) -> Tensor:
    """The same without a number that the host has to know."""
    return _above(scores, _kth_largest(scores, count), count)


def _above(scores: Tensor, threshold: Tensor, count: int) -> Tensor:
    """What is above the threshold along the last dim, and of what equals it the first, up to ``count``."""
    keep = scores > threshold
    tied = scores == threshold
    # In int32, which takes half the memory, as long as it can count them.
    counter = torch.int32 if scores.numel() < 2**31 else torch.int64
    first = tied.cumsum(-1, dtype=counter) <= count - keep.sum(-1, keepdim=True)
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

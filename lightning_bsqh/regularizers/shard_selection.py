"""Exact selection of the largest of many scores of which every process holds some: by counts, nothing is gathered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Bits of a score that one message decides upon; it has 2 to the power of so many counts for each list.
_BITS = 11
#: Adds a tensor of counts up over the processes, in place.
Add = Callable[[Tensor], object]


def keep_largest_of_shards(
    scores: Sequence[Tensor],
    counts: Sequence[int],
    places: Sequence[Callable[[], Tensor]],
    sizes: Sequence[int],
    add_: Add,
    without: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Marks the largest scores of each of several lists; among equal ones those that come first.

    A radix search: floats that are not negative are ordered as the integers of the same bits, so a few bits at a time
    are decided upon by how many scores begin in each way. Every process finds the same thresholds.

    Args:
        scores: Of each list what this process holds: non-negative, shape ``[n]``, float32 or float64, all alike.
        counts: How many to keep of each list, over all processes.
        places: Give for each list where this process's scores are in the whole list, int64, shape ``[n]``. Asked only
            if equal scores compete.
        sizes: Number of scores of each list, over all processes.
        add_: Adds counts up over the processes.
        without: Boolean masks, shape ``[n]``: what cannot be kept; ``counts`` is at most what is left.

    Returns:
        A boolean mask for each list, shape ``[n]``; ``counts`` entries are set over all processes, or all there are.
    """
    keys = [_ordered(s) for s in scores]
    bits = 63 if scores[0].dtype == torch.float64 else 31
    if without is not None:
        # Below all that can be kept, so that a search for as many as these does not come down to it.
        keys = [k.add(1).masked_fill_(no, 0) for k, no in zip(keys, without, strict=True)]
    wanted = [max(min(count, size), 0) for count, size in zip(counts, sizes, strict=True)]
    bounds, missing, tied = _search(keys, wanted, bits, add_)
    if torch.equal(missing, tied):
        return [k >= bound for k, bound in zip(keys, bounds, strict=True)]
    equal = [k == bound for k, bound in zip(keys, bounds, strict=True)]
    # Of equal ones the first: those with the most places behind them.
    behind = [size - 1 - place()[own] for size, place, own in zip(sizes, places, equal, strict=True)]
    last, _, _ = _search(behind, missing.tolist(), max(max(sizes).bit_length(), 1), add_)
    keep = [k > bound for k, bound in zip(keys, bounds, strict=True)]
    for mask, own, rest, bound in zip(keep, equal, behind, last, strict=True):
        mask[own] = rest >= bound
    return keep


def keep_best_within_of_shards(
    scores: Tensor, costs: Tensor, budget: int, places: Tensor, size: int, add_: Add
) -> Tensor:
    """Marks the largest scores, as long as the budget lasts; among equal ones those that come first.

    Args:
        scores: What this process holds: non-negative, shape ``[n]``, float32 or float64.
        costs: What each of them costs, int64, shape ``[n]``.
        budget: What they may cost together, over all processes.
        places: Where these scores are in the whole list, int64, shape ``[n]``.
        size: Number of places in the whole list.
        add_: Adds costs up over the processes.

    Returns:
        A boolean mask, shape ``[n]``.
    """
    keys = _ordered(scores)
    bound, left = _first_too_dear(keys, costs, budget, 63 if keys.dtype == torch.int64 else 31, add_)
    equal, keep = keys == bound, keys > bound
    # Of equal ones the first: those with the most places behind them.
    behind = size - 1 - places[equal]
    last, _ = _first_too_dear(behind, costs[equal], left, max(size.bit_length(), 1), add_)
    keep[equal] = behind > last
    return keep


def _first_too_dear(keys: Tensor, costs: Tensor, budget: int, bits: int, add_: Add) -> tuple[int, int]:
    """The largest key such that it and all larger ones cost more than the budget.

    Returns:
        It, -1 if all are within the budget; and what of the budget the larger ones leave.
    """
    bound, left = 0, budget
    top = (bits - 1) // _BITS * _BITS
    for shift in range(top, -1, -_BITS):
        digits = 1 << min(_BITS, bits - shift)
        if shift < top:
            begins = keys >> (shift + _BITS) == bound
            keys, costs = keys[begins], costs[begins]
        own = ((keys >> shift) & (digits - 1)).long()
        table = torch.zeros(digits, dtype=torch.int64, device=keys.device).index_add_(0, own, costs)
        add_(table)
        reaching = table.flip(0).cumsum(0).flip(0)
        digit = int((reaching > left).sum()) - 1
        if digit < 0:
            return -1, left
        left -= int(reaching[digit] - table[digit])
        bound = (bound << _BITS) | digit
    return bound, left


def _ordered(scores: Tensor) -> Tensor:
    """Integers in the order of the scores, with NaN as the largest."""
    # A zero may have a sign.
    plain = scores.abs()
    return plain.view(torch.int64) if plain.dtype == torch.float64 else plain.float().view(torch.int32)


def _search(keys: Sequence[Tensor], counts: Sequence[int], bits: int, add_: Add) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest of the ``counts`` largest keys of each list.

    Returns:
        These; how many that are equal to them are among the largest; how many there are. Each of shape ``[lists]``.
    """
    left = torch.tensor(list(counts), dtype=torch.int64, device=keys[0].device)
    bounds, tied = torch.zeros_like(left), torch.zeros_like(left)
    top = (bits - 1) // _BITS * _BITS
    for shift in range(top, -1, -_BITS):
        digits = 1 << min(_BITS, bits - shift)
        if shift < top:
            # What begins otherwise has been decided upon.
            keys = [k[k >> (shift + _BITS) == bound] for k, bound in zip(keys, bounds, strict=True)]
        table = torch.stack([((k >> shift) & (digits - 1)).bincount(minlength=digits) for k in keys])
        add_(table)
        # How many there are from each digit on.
        reaching = table.flip(1).cumsum(1).flip(1)
        digit = (reaching >= left.unsqueeze(1)).sum(1, keepdim=True) - 1
        tied = table.gather(1, digit).squeeze(1)
        left = left - (reaching.gather(1, digit).squeeze(1) - tied)
        bounds = (bounds << _BITS) | digit.squeeze(1)
    return bounds, left, tied

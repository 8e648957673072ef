"""Whether two regularizers demand the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_bsqh.regularizers.base import Regularizer
from lightning_bsqh.regularizers.groups import Groups
from lightning_bsqh.regularizers.ramp import Ramp

_PLAIN = (bool, int, float, str, type(None))
_OBJECTS = (Regularizer, Ramp, Groups)


def same(first: Any, second: Any) -> bool:
    """Whether two regularizers, or what they consist of, are the same; in doubt no."""
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, _PLAIN):
        return bool(first == second)
    if isinstance(first, _OBJECTS):
        return same(vars(first), vars(second))
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, Sequence):
        return len(first) == len(second) and all(map(same, first, second))
    return False

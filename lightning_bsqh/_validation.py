"""Checks of options: one sentence that names the argument, the value and the permitted range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

#: No count is larger; float and torch can still represent it.
_LARGEST = 10**15


def number(
    name: str,
    value: Any,
    *,
    low: float,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    infinite: bool = False,
) -> float:
    """Returns ``value`` as a float if it is a finite number in the range, else raises.

    Args:
        name: The argument's name, for the message.
        value: What the user passed.
        low: Lower end of the range.
        high: Upper end of the range, included unless infinite.
        open_low: Whether ``low`` itself is excluded.
        open_high: Whether ``high`` itself is excluded.
        infinite: Whether infinity is in the range, too.

    Raises:
        TypeError: If ``value`` is no number.
        ValueError: If it is not finite or lies outside the range.
    """
    end = ")" if open_high or (math.isinf(high) and not infinite) else "]"
    span = f"{'(' if open_low else '['}{low:g}, {high:g}{end}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number in {span}, got {shown(value)}.")
    try:
        found = float(value)
    except OverflowError:
        raise ValueError(f"{name} must lie in {span}, got an integer too large for a float.") from None
    above = found > low if open_low else found >= low
    below = found < high if open_high else found <= high
    if not ((math.isfinite(found) or (infinite and found > 0.0)) and above and below):
        raise ValueError(f"{name} must lie in {span}, got {shown(value)}.")
    return found


def integer(name: str, value: Any, *, low: int) -> int:
    """Returns ``value`` if it is an integer of at least ``low``, else raises.

    Raises:
        TypeError: If ``value`` is no integer.
        ValueError: If it is below ``low``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer of at least {low}, got {shown(value)}.")
    if not low <= value <= _LARGEST:
        raise ValueError(f"{name} must be at least {low} and at most {_LARGEST:.0e}, got {shown(value)}.")
    return value


def flag(name: str, value: Any) -> bool:
    """Returns ``value`` if it is True or False, else raises.

    Raises:
        TypeError: If it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}.")
    return value


def names(name: str, value: Any, example: str) -> list[str]:
    """Returns ``value`` as a list if it is a sequence of names that are not empty, else raises.

    Args:
        name: The argument's name, for the message.
        value: What the user passed.
        example: What would be right.

    Raises:
        ValueError: If it is no such sequence.
    """
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping, Tensor)):
        found = list(value)
        if all(isinstance(each, str) and each.strip("!") for each in found):
            return found
        value = found
    raise ValueError(f"{name} must be a list of name patterns such as {example}, got {shown(value)}.")


def shown(value: Any) -> str:
    """``repr(value)`` on one line of at most 80 characters, whatever the value is."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # A repr may do anything, and Python refuses that of very long integers.
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """Returns ``value`` if it is one of ``options``, else raises.

    Raises:
        ValueError: If it is none of them.
    """
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be {' or '.join(repr(option) for option in options)}, got {shown(value)}.")
    return str(value)

"""Checks of options: one sentence that names the argument, the value and the permitted range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def number(
    name: str, value: Any, *, low: float, high: float = math.inf, open_low: bool = False, open_high: bool = False
) -> float:
    """Returns ``value`` as a float if it is a finite number in the range, else raises.

    Args:
        name: The argument's name, for the message.
        value: What the user passed.
        low: Lower end of the range.
        high: Upper end of the range, included unless infinite.
        open_low: Whether ``low`` itself is excluded.
        open_high: Whether ``high`` itself is excluded.

    Raises:
        TypeError: If ``value`` is no number.
        ValueError: If it is not finite or lies outside the range.
    """
    end = ")" if open_high or math.isinf(high) else "]"
    span = f"{'(' if open_low else '['}{low:g}, {high:g}{end}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number in {span}, got {value!r}.")
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (math.isfinite(value) and above and below):
        raise ValueError(f"{name} must lie in {span}, got {value!r}.")
    return float(value)


def integer(name: str, value: Any, *, low: int) -> int:
    """Returns ``value`` if it is an integer of at least ``low``, else raises.

    Raises:
        TypeError: If ``value`` is no integer.
        ValueError: If it is below ``low``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer of at least {low}, got {value!r}.")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value!r}.")
    return value


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """Returns ``value`` if it is one of ``options``, else raises.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in options:
        raise ValueError(f"{name} must be {' or '.join(repr(option) for option in options)}, got {value!r}.")
    return str(value)

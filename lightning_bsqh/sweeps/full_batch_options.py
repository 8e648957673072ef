"""The options of full-batch mode (method §5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_bsqh._validation import choice, flag, integer, number, shown
from lightning_bsqh.network.tree import first_dimension


@dataclass(frozen=True)
class FullBatch:
    """The options of full-batch mode.

    Attributes:
        kappa: κ ≥ 0: the training has converged when an accepted τ is less.
        max_iterations: Largest number of iterations, None for no limit.
        count_samples: Number of samples in a micro-batch.
        reuse: Whether a sweep that is known already is used again.
    """

    kappa: float
    max_iterations: int | None
    count_samples: Callable[[Any], int]
    reuse: bool

    def samples(self, batch: Any) -> int:
        """Number of samples in a micro-batch, checked.

        Raises:
            ValueError: If ``count_samples`` gave no integer of at least 1.
        """
        count = self.count_samples(batch)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count_samples must return the number of samples in a batch, at least 1, got {count!r}.")
        return count


def make_full_batch(
    batch_mode: str,
    kappa: float,
    max_iterations: int | None,
    count_samples: Callable[[Any], int] | None,
    reuse: bool,
) -> FullBatch | None:
    """The checked options of full-batch mode; None in mini-batch mode.

    Args:
        batch_mode: ``"mini"`` or ``"full"``.
        kappa: κ of the stopping test, at least 0.
        max_iterations: Largest number of iterations, at least 1; None for no limit.
        count_samples: Number of samples in a micro-batch. None takes the first dimension of its first tensor.
        reuse: Whether a sweep that is known already is used again.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of its range, or needs the other mode.
    """
    choice("batch_mode", batch_mode, ("mini", "full"))
    kappa = number("kappa", kappa, low=0.0)
    if max_iterations is not None:
        integer("max_iterations", max_iterations, low=1)
    if count_samples is not None and not callable(count_samples):
        raise TypeError(f"count_samples must be a function of the batch, got {shown(count_samples)}.")
    flag("reuse", reuse)
    if batch_mode == "full":
        return FullBatch(kappa, max_iterations, count_samples or number_of_rows, reuse)
    given = {
        "kappa": kappa != 1e-9,
        "max_iterations": max_iterations is not None,
        "count_samples": count_samples is not None,
        "reuse": not reuse,
    }
    for name, value in zip(given, (kappa, max_iterations, count_samples, reuse), strict=True):
        if given[name]:
            raise ValueError(
                f"{name}={shown(value)} is for batch_mode='full', where an iteration is one pass over the data;"
                " leave it out, or choose that mode."
            )
    return None


def number_of_rows(batch: Any) -> int:
    """The first dimension of the first tensor in a nest of mappings and sequences.

    Raises:
        ValueError: If there is none.
    """
    found = first_dimension(batch)
    if found is None:
        raise ValueError(
            f"The number of samples in a batch of type {type(batch).__name__} cannot be told, as it has no tensor with"
            " a first dimension: pass count_samples, a function of the batch."
        )
    return found

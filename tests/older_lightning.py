"""What the tests ask of Lightning that its older versions do not have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import lightning as L


def accept_weights_only() -> Callable[[], None]:
    """Lets ``Trainer.fit`` of any version take ``weights_only``; gives what takes that back.

    Lightning before 2.6 does not know the argument, and loads whatever is in a checkpoint.
    """
    fit = L.Trainer.fit
    if "weights_only" in inspect.signature(fit).parameters:
        return lambda: None

    @functools.wraps(fit)
    def without(self: L.Trainer, *args: Any, weights_only: bool | None = None, **options: Any) -> None:
        fit(self, *args, **options)

    L.Trainer.fit = without
    return functools.partial(setattr, L.Trainer, "fit", fit)

"""What the progress bar and the model summary say about a training without being asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from lightning_bsqh.optimizer import BSQHOptimizer

#: Steps between two counts of the zeros.
_EVERY = 10


class ProgressMetrics:
    """Adds loss, ε, trials and sparsity to what the Trainer's progress bar shows.

    By way of the bar's ``get_metrics``, the method that Lightning documents for this, and not of ``log``: what a
    user's module and callbacks have logged stays all that is logged.

    Args:
        trainer: Whose bar it is.
        optimizer: Whose iterations are shown.
    """

    def __init__(self, trainer: pl.Trainer, optimizer: BSQHOptimizer) -> None:
        self._optimizer = optimizer
        self._sparsity = 0.0
        self._counted = -_EVERY
        self._bar = trainer.progress_bar_callback
        self._own = None if self._bar is None else vars(self._bar).get("get_metrics")
        if self._bar is not None:
            vars(self._bar)["get_metrics"] = self._extended(self._bar.get_metrics)

    def detach(self) -> None:
        """Leaves the bar as it was."""
        if self._bar is None:
            return
        if self._own is None:
            vars(self._bar).pop("get_metrics", None)
        else:
            vars(self._bar)["get_metrics"] = self._own
        self._bar = None

    def _extended(self, given: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def get_metrics(*args: Any, **kwargs: Any) -> dict[str, Any]:
            metrics = given(*args, **kwargs)
            for key, (replaces, value) in self._values().items():
                if key not in metrics and replaces not in metrics:
                    metrics[key] = value
            return metrics

        return get_metrics

    def _values(self) -> dict[str, tuple[str, Any]]:
        """Name in the bar, the key under which a monitor may show it already, and value."""
        report = self._optimizer.last_step
        if report is None:
            return {}
        values: dict[str, tuple[str, Any]] = {
            "loss": ("train_loss", f"{report.loss:.3g}"),
            "ε": ("bsqh/epsilon", f"{report.epsilon:.3g}"),
        }
        if self._optimizer.regularized_weights():
            if self._optimizer.iterations - self._counted >= _EVERY:
                self._sparsity, self._counted = self._optimizer.sparsity(), self._optimizer.iterations
            values["zeros"] = ("sparsity/total", f"{100.0 * self._sparsity:.1f}%")
        # The rich bar would write a number as 1.000. Last, as a narrow terminal cuts the end off.
        values["trials"] = ("bsqh/trials", str(report.trials))
        return values


def layer_summary(optimizer: BSQHOptimizer) -> str:
    """A table of the layers that the maximum principle is applied to, and what R does to each."""
    rows = [("layer", "module", "maximiser", "parameters", "regularised", "regularizer")]
    for layer in optimizer.layers:
        kinds = sorted({type(module).__name__ for module in layer.modules})
        exact = "exact" if layer.is_affine else "true K" if layer.can_be_run else "linearised"
        counted = sum(p.numel() for name, p in layer.parameters.items() if name in layer.regularized)
        rows.append(
            (
                layer.name,
                ", ".join(kinds) or "-",
                exact,
                f"{sum(p.numel() for p in layer.parameters.values()):,}",
                f"{counted:,}" if counted else "-",
                optimizer.regularizer_of(layer) if counted else "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(["Layers of the maximum principle", *lines])

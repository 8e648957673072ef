"""What the progress bar and the model summary say about a training without being asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_bsqh.namespace import pl
from lightning_bsqh.network.layers import Layer
from lightning_bsqh.network.roles import Role
from lightning_bsqh.optimizer import BSQHOptimizer

#: Steps between two counts of the zeros.
_EVERY = 10
#: Tensors that the summary names, before it counts the others.
_NAMED = 6


class ProgressMetrics:
    """Adds loss, ε, sparsity and trials to what the Trainer's progress bar shows.

    By way of the bar's ``get_metrics``, the method that Lightning documents for this, and not of ``log``: what a
    user's module and callbacks have logged stays all that is logged. Keys and values are short, so that they fit into
    80 columns; where a monitor shows the same under its long key, the short one takes its place.

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
            # A method and no function made here, so that a Trainer can be pickled while it fits.
            vars(self._bar)["get_metrics"] = self.get_metrics

    def detach(self) -> None:
        """Leaves the bar as it was."""
        if self._bar is None:
            return
        if self._own is None:
            vars(self._bar).pop("get_metrics", None)
        else:
            vars(self._bar)["get_metrics"] = self._own
        self._bar = None

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What the bar would show by itself, and the iteration."""
        if self._bar is None:
            return {}
        given = partial(type(self._bar).get_metrics, self._bar) if self._own is None else self._own
        metrics: dict[str, Any] = dict(given(*args, **kwargs))
        for key, (replaces, value) in self._values().items():
            if key not in metrics and not (key == "loss" and replaces in metrics):
                metrics.pop(replaces, None)
                metrics[key] = value
        return metrics

    def _values(self) -> dict[str, tuple[str, Any]]:
        """Name in the bar, the key under which a monitor may show it already, and value."""
        report = self._optimizer.arrived_step
        if report is None:
            return {}
        values: dict[str, tuple[str, Any]] = {"loss": ("train_loss", short(report.loss))}
        # Of sharded weights all processes would have to count, and one has the bar.
        if self._optimizer.regularized_weights() and not self._optimizer.is_sharded:
            if self._optimizer.iterations - self._counted >= _EVERY:
                self._sparsity, self._counted = self._optimizer.sparsity(), self._optimizer.iterations
            values["zeros"] = ("sparsity/total", f"{100.0 * self._sparsity:.3g}%")
        values[_epsilon_key()] = ("bsqh/epsilon", short(report.epsilon))
        # The rich bar would write a number as 1.000. Last, as a narrow terminal cuts the end off.
        values["trials"] = ("bsqh/trials", str(report.trials))
        return values


def short(value: float) -> str:
    """A number in three digits, and few characters."""
    return min(f"{value:.3g}", f"{value:.0f}" if abs(value) >= 100.0 else f"{value:.3g}", key=len)


def _epsilon_key() -> str:
    """``"ε"`` if whatever the bar may be written to can carry it."""
    try:
        for stream in (sys.stdout, sys.stderr):
            "ε".encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "eps"
    return "ε"


def layer_summary(optimizer: BSQHOptimizer) -> str:
    """A table of the layers that the maximum principle is applied to, and what R does to each."""
    rows: list[tuple[str, ...]] = [("layer", "module", "maximizer", "parameters", "regularized", "regularizer")]
    rows += [_row(layer, optimizer) for layer in optimizer.layers]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(["Layers of the maximum principle", *lines, *decisions(optimizer.layers)])


def _row(layer: Layer, optimizer: BSQHOptimizer) -> tuple[str, ...]:
    kinds = sorted({type(module).__name__ for module in layer.modules})
    exact = "exact" if layer.is_affine else "true K" if layer.is_safeguarded else "linearized"
    weights = [p for name, p in layer.trained.items() if name in layer.regularized]
    return (
        layer.name,
        ", ".join(kinds) or "-",
        exact if layer.trained else "frozen",
        _count(list(layer.trained.values())),
        _count(weights) if weights else "-",
        optimizer.regularizer_of(layer) if weights else "-",
    )


def _count(tensors: list[Tensor]) -> str:
    return "?" if any(is_lazy(p) for p in tensors) else f"{sum(p.numel() for p in tensors):,}"


def decisions(layers: list[Layer]) -> list[str]:
    """What was decided about tensors of two dimensions or more that are no weights of a module of torch."""
    out, by_shape = [], []
    for name, parameter, role, is_regularized in _open_to_doubt(layers):
        # Where the user has decided otherwise, it is known.
        if not role.is_weight and not is_regularized:
            out.append(f"{name} {list(parameter.shape)} ({role.reason})")
        elif role.is_weight and not role.is_sure and is_regularized:
            by_shape.append(f"{name} {list(parameter.shape)}")
    lines = [f"Not regularized, though of two dimensions or more: {_listed(out)}."] if out else []
    lines += [f"Regularized by their shape alone: {_listed(by_shape)}."] if by_shape else []
    return [*lines, "regularize=[...] decides otherwise, by names."] if lines else []


def _open_to_doubt(layers: list[Layer]) -> Iterator[tuple[str, Tensor, Role, bool]]:
    """The trained tensors of two dimensions or more, as far as their shape is known."""
    for layer in layers:
        for name, parameter in layer.trained.items():
            if name in layer.roles and not is_lazy(parameter) and parameter.dim() >= 2:
                yield name, parameter, layer.roles[name], name in layer.regularized


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more

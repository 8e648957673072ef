"""Pictures of the weights in W&B: bars of zeros, histograms, filter masks, a table of layers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh._validation import integer
from lightning_bsqh.callbacks._logging import is_due
from lightning_bsqh.callbacks._target import is_at_target
from lightning_bsqh.callbacks._weights import (
    all_weights,
    count_zero_groups,
    count_zeros,
    layer_weights,
    sparsity_values,
)
from lightning_bsqh.wandb.images import filter_mask, labels, sparsity_bars

_BINS = 64
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COLUMNS: list[str | int] = [
    "layer",
    "shape",
    "weights",
    "non-zero",
    "sparsity",
    "smallest |w|",
    "largest |w|",
    "filters or rows zero",
]


class PictureMonitor(L.Callback):
    """Gives W&B pictures of the weights, and best accuracy and sparsity for the run's summary.

    While training, every so many steps and at the end:

    - ``pictures/sparsity``: a bar for each layer, as long as its share of zeros;
    - ``weights/<layer>``: the histogram of the layer's weights that are not zero (the zeros, a single high bar, would
      hide the others; their share is in the bars). Values that are not finite are left out;
    - ``masks/<layer>``: for each convolution which weights are left, see
      :func:`~lightning_bsqh.wandb.images.filter_mask`.

    At the end ``pictures/layers``, a table of the layers. In the run's summary ``best/<key>``, the largest value of
    every metric with "acc" in its key that a validation has logged, and ``best/<key>_sparsity``, the sparsity that the
    network had then. Only validations of a network that is as sparse as the regularizer (or MagnitudePruning) demands
    in the end count: while a ramp rises, the best accuracy is often that of a network that is not sparse yet. At
    the end ``final/sparsity`` and ``final/nonzero``.

    The weights are those that are regularised; with another optimizer than bSQH's, or if none is regularised, those
    that bSQH would regularise by default. Where the Trainer has no WandbLogger, one warning says so and nothing is
    drawn. W&B's offline runs get everything, too.

    Args:
        every_n_steps: Draw every so many batches, at least 1.
        max_filters: Masks show at most so many filters and input channels, the first ones; at least 1.

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If an argument is less than 1.
    """

    def __init__(self, every_n_steps: int = 200, max_filters: int = 64) -> None:
        self.every_n_steps = integer("every_n_steps", every_n_steps, low=1)
        self.max_filters = integer("max_filters", max_filters, low=1)
        self._loggers: list[WandbLogger] = []
        self._has_pillow = False
        self._drawn: int | None = None
        self._before: dict[str, Tensor] = {}
        # Best value and the sparsity then, by the metric's key.
        self._best: dict[str, tuple[float, float]] = {}
        self._is_resumed = False

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        self._drawn = None
        if not self._is_resumed:
            self._best = {}
        self._is_resumed = False
        if not self._loggers:
            others = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none"
            rank_zero_warn(
                f"PictureMonitor gives its pictures to a WandbLogger, but the Trainer's loggers are: {others}. The "
                "training goes on without pictures. To have them without an account: pip install wandb, and "
                "Trainer(logger=WandbLogger(offline=True))."
            )
            return
        self._has_pillow = importlib.util.find_spec("PIL") is not None
        if not self._has_pillow:
            rank_zero_warn(
                "PictureMonitor draws with pillow, which is not installed: there will be histograms and the table of "
                "layers, but no bars and no masks. To have them: pip install pillow."
            )

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_due(self.every_n_steps, trainer, trainer.global_step) and self._drawn != trainer.global_step:
            self._draw(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before = dict(trainer.callback_metrics)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._loggers or trainer.sanity_checking or not is_at_target(trainer):
            return
        metrics = trainer.callback_metrics
        # What this validation has not logged is still the same object.
        new = [key for key in metrics if "acc" in key.lower() and metrics[key] is not self._before.get(key)]
        self._before = {}
        better = {key: float(metrics[key]) for key in new if key not in self._best or metrics[key] > self._best[key][0]}
        if better:
            sparsity = sparsity_values(_weights(trainer, pl_module))["sparsity/total"]
            for key, value in better.items():
                self._best[key] = (value, sparsity)
            if trainer.is_global_zero:
                self._summarise({f"best/{key}": self._best[key][0] for key in better})
                self._summarise({f"best/{key}_sparsity": self._best[key][1] for key in better})

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._loggers or not trainer.is_global_zero:
            return
        if self._drawn != trainer.global_step:
            self._draw(trainer, pl_module)
        weights = _weights(trainer, pl_module)
        values = sparsity_values(weights)
        self._summarise({"final/sparsity": values["sparsity/total"], "final/nonzero": int(values["nonzero/total"])})
        # What was best before a checkpoint from which the training has gone on.
        for key, (best, sparsity) in self._best.items():
            self._summarise({f"best/{key}": best, f"best/{key}_sparsity": sparsity})
        if weights:
            from wandb import Table

            self._write(trainer, {"pictures/layers": Table(columns=_COLUMNS, data=layer_rows(weights))})

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # A validation or test after the training is none of its.
        self._loggers = []
        self._is_resumed = False

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best": {key: list(best) for key, best in self._best.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = {key: (value, sparsity) for key, (value, sparsity) in state_dict["best"].items()}
        self._is_resumed = True

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._loggers or not trainer.is_global_zero:
            return
        weights = _weights(trainer, pl_module)
        if not weights:
            return
        from wandb import Histogram

        pictures: dict[str, Any] = {}
        for name, tensors in weights.items():
            counts, edges = nonzero_histogram(tensors)
            pictures[f"weights/{name}"] = Histogram(np_histogram=(counts.numpy(), edges.numpy()))
        if self._has_pillow:
            pictures |= self._images(pl_module, weights)
        self._write(trainer, pictures)
        self._drawn = trainer.global_step

    def _images(self, pl_module: L.LightningModule, weights: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
        from PIL.Image import fromarray
        from wandb import Image

        short = labels(list(weights))
        shares = {short[name]: zeros / max(size, 1) for name, (zeros, size) in count_zeros(weights).items()}
        images: dict[str, Any] = {"pictures/sparsity": Image(sparsity_bars(shares))}
        shown = {id(w) for tensors in weights.values() for w in tensors}
        for name, module in pl_module.named_modules():
            weight = module.weight if isinstance(module, _CONVOLUTIONS) else None
            if isinstance(weight, Tensor) and id(weight) in shown:
                shown.remove(id(weight))  # a weight that modules share is drawn once
                parts = [f"{min(n, self.max_filters)} of {n}" for n in weight.shape[:2]]
                caption = f"{name or type(module).__name__}: {parts[0]} x {parts[1]} kernels, white is non-zero"
                mask = fromarray(filter_mask(weight, self.max_filters).numpy())
                images[f"masks/{name or type(module).__name__}"] = Image(mask, caption=caption)
        return images

    def _write(self, trainer: L.Trainer, values: Mapping[str, Any]) -> None:
        for logger in self._loggers:
            logger.log_metrics(values, step=max(trainer.global_step - 1, 0))

    def _summarise(self, values: Mapping[str, float]) -> None:
        for logger in self._loggers:
            logger.experiment.summary.update(dict(values))


def nonzero_histogram(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """How the finite weights that are not zero are spread, over equal bins from the smallest to the largest.

    Args:
        tensors: Weights of any shapes.

    Returns:
        Counts ``[64]`` and edges ``[65]``. Without such a weight all counts are 0, between -1 and 1.
    """
    values = torch.cat([w.detach().flatten().cpu().double() for w in tensors])
    values = values[(values != 0) & torch.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (-1.0, 1.0)
    if low == high:
        low, high = low - abs(low) / 2, high + abs(high) / 2
    counts, edges = torch.histogram(values, bins=_BINS, range=(low, high))
    return counts.long(), edges


def layer_rows(weights: Mapping[str, Sequence[Tensor]]) -> list[list[Any]]:
    """The rows of the table of layers, under the columns layer, shape, weights, non-zero and so on."""
    rows: list[list[Any]] = []
    for name, (zeros, size) in count_zeros(weights).items():
        tensors = weights[name]
        sizes = torch.cat([w.detach().flatten().abs().cpu().double() for w in tensors])
        left = sizes[sizes != 0]
        smallest, largest = (float(left.min()), float(left.max())) if len(left) else (None, None)
        shapes = ", ".join("x".join(str(n) for n in w.shape) for w in tensors)
        groups = ", ".join(f"{empty} of {n} {kind}" for kind, (empty, n) in count_zero_groups({name: tensors}).items())
        rows.append([name, shapes, size, size - zeros, zeros / max(size, 1), smallest, largest, groups])
    return rows


def _weights(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, list[Tensor]]:
    return layer_weights(trainer, pl_module) or all_weights(pl_module)

"""Pictures of the weights for loggers: bars of zeros, histograms, masks, a table of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh._validation import integer
from lightning_bsqh.callbacks._images import Album, Pictures, albums, has_pillow
from lightning_bsqh.callbacks._logging import is_due
from lightning_bsqh.callbacks._target import is_at_target
from lightning_bsqh.callbacks._weights import (
    all_weights,
    count_zero_groups,
    count_zeros,
    layer_weights,
    sparsity_values,
)
from lightning_bsqh.namespace import pl, rank_zero_warn
from lightning_bsqh.network.sharding import is_sharded
from lightning_bsqh.report.bars import sparsity_bars
from lightning_bsqh.report.masks import draw_mask
from lightning_bsqh.report.names import display_names

_BINS = 64
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COLUMNS = ["layer", "shape", "weights", "non-zero", "sparsity", "smallest |w|", "largest |w|", "filters or rows zero"]


class PictureMonitor(pl.Callback):
    """Gives loggers pictures of the weights, and W&B the best accuracy and the sparsity for the run's summary.

    While training, every so many steps and at the end:

    - ``pictures/sparsity``: a bar for each layer, as long as its share of zeros;
    - ``weights/<layer>``: the histogram of the layer's weights that are not zero (the zeros, a single high bar, would
      hide the others; their share is in the bars). Values that are not finite are left out;
    - ``masks/<layer>``: for each convolution which weights are left, see
      :func:`~lightning_bsqh.report.masks.draw_mask`.

    At the end ``pictures/layers``, a table of the layers. In the run's summary ``best/<key>``, the largest value of
    every metric with "acc" in its key that a validation has logged, and ``best/<key>_sparsity``, the sparsity that the
    network had then. Only validations of a network that is as sparse as the regularizer (or MagnitudePruning) demands
    in the end count: while a ramp rises, the best accuracy is often that of a network that is not sparse yet. At
    the end ``final/sparsity`` and ``final/nonzero``.

    TensorBoard and W&B get all pictures, the summary only W&B; MLflow, and any logger with Lightning's
    ``log_image(key, images, step=…)``, bars and masks. Where the Trainer has no such logger, one warning says so and
    nothing is drawn. W&B's offline runs get everything, too.

    The weights are those that are regularized; with another optimizer than bSQH's, or if none is regularized, those
    that bSQH would regularize by default.

    Args:
        every_n_steps: Draw every so many batches, at least 1.
        max_filters: Masks show at most so many filters and input channels, the first ones; at least 1.

    Raises:
        TypeError: If an argument is no integer; at the start of the fit, if parameters are sharded.
        ValueError: If an argument is less than 1.
    """

    def __init__(self, every_n_steps: int = 200, max_filters: int = 64) -> None:
        self.every_n_steps = integer("every_n_steps", every_n_steps, low=1)
        self.max_filters = integer("max_filters", max_filters, low=1)
        self._albums: list[Album] = []
        self._has_pillow = False
        self._drawn: int | None = None
        self._before: dict[str, Tensor] = {}
        # Best value and the sparsity then, by the metric's key.
        self._best: dict[str, tuple[float, float]] = {}
        self._is_resumed = False

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if any(map(is_sharded, pl_module.parameters())):
            raise TypeError(
                "PictureMonitor needs whole weights, of which shard='fsdp' leaves some rows in every process: leave the"
                " callback or shard out."
            )
        self._albums = albums(trainer.loggers)
        self._drawn = None
        if not self._is_resumed:
            self._best = {}
        self._is_resumed = False
        if not self._albums:
            others = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none"
            rank_zero_warn(
                "PictureMonitor gives its pictures to the loggers of TensorBoard, W&B and MLflow, and to any with"
                f" log_image, but the Trainer's loggers are: {others}. The training goes on without pictures. To have"
                " them: Trainer(logger=TensorBoardLogger(...)), or without an account pip install wandb and"
                " Trainer(logger=WandbLogger(offline=True))."
            )
            return
        self._has_pillow = has_pillow()
        if not self._has_pillow:
            rank_zero_warn(
                "PictureMonitor draws with pillow, which is not installed: there will be histograms and the table of "
                "layers, but no bars and no masks. To have them: pip install pillow."
            )

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_due(self.every_n_steps, trainer, trainer.global_step) and self._drawn != trainer.global_step:
            self._draw(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = dict(trainer.callback_metrics)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._albums or trainer.sanity_checking or not is_at_target(trainer):
            return
        metrics = trainer.callback_metrics
        # What this validation has not logged is still the same object.
        new = [key for key in metrics if "acc" in key.lower() and metrics[key] is not self._before.get(key)]
        self._before = {}
        better = {key: float(metrics[key]) for key in new if key not in self._best or metrics[key] > self._best[key][0]}
        weights = _weights(trainer, pl_module)
        if better:
            sparsity = sparsity_values(weights)["sparsity/total"]
            self._best |= {key: (value, sparsity) for key, value in better.items()}
            if trainer.is_global_zero:
                self._summarize_best(better)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._albums or not trainer.is_global_zero:
            return
        if self._drawn != trainer.global_step:
            self._draw(trainer, pl_module)
        weights = _weights(trainer, pl_module)
        values = sparsity_values(weights)
        final = {"final/sparsity": values["sparsity/total"], "final/nonzero": int(values["nonzero/total"])}
        for album in self._albums:
            album.summarize(final)
            if weights:
                album.table("pictures/layers", _COLUMNS, layer_rows(weights), max(trainer.global_step - 1, 0))
        # What was best before a checkpoint from which the training has gone on.
        self._summarize_best(self._best)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # A validation or test after the training is none of its.
        self._albums = []
        self._is_resumed = False

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best": {key: list(best) for key, best in self._best.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = {key: (value, sparsity) for key, (value, sparsity) in state_dict["best"].items()}
        self._is_resumed = True

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._albums or not trainer.is_global_zero:
            return
        weights = _weights(trainer, pl_module)
        if not weights:
            return
        pictures = Pictures({}, {}, {f"weights/{name}": nonzero_histogram(ws) for name, ws in weights.items()})
        if self._has_pillow:
            self._add_images(pictures, pl_module, weights)
        for album in self._albums:
            album.show(pictures, max(trainer.global_step - 1, 0))
        self._drawn = trainer.global_step

    def _add_images(
        self, pictures: Pictures, pl_module: pl.LightningModule, weights: Mapping[str, Sequence[Tensor]]
    ) -> None:
        # The font has no sign for what is left out.
        short = display_names(list(weights), 32, "...")
        shares = {short[name]: zeros / max(size, 1) for name, (zeros, size) in count_zeros(weights).items()}
        pictures.images["pictures/sparsity"] = sparsity_bars(shares)
        shown = {id(w) for tensors in weights.values() for w in tensors}
        for name, module in pl_module.named_modules():
            weight = module.weight if isinstance(module, _CONVOLUTIONS) else None
            if isinstance(weight, Tensor) and weight.numel() and id(weight) in shown:
                shown.remove(id(weight))  # a weight that modules share is drawn once
                name = name or type(module).__name__
                mask = draw_mask(weight.detach()[: self.max_filters, : self.max_filters] != 0)
                pictures.images[f"masks/{name}"] = mask.on_white()
                parts = " x ".join(f"{min(n, self.max_filters)} of {n}" for n in weight.shape[:2])
                pictures.captions[f"masks/{name}"] = f"{name}: {parts} kernels, blue is not zero; {mask.caption}"

    def _summarize_best(self, keys: Mapping[str, Any]) -> None:
        for album in self._albums:
            for key in keys:
                best, sparsity = self._best[key]
                album.summarize({f"best/{key}": best, f"best/{key}_sparsity": sparsity})


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


def _weights(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, list[Tensor]]:
    return layer_weights(trainer, pl_module) or all_weights(pl_module)

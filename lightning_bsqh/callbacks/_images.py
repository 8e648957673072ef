"""Hands pictures, histograms and tables to whatever loggers take them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lightning_bsqh.namespace import Logger, TensorBoardLogger, WandbLogger

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Pictures:
    """What is to be shown of one step.

    Attributes:
        images: By key.
        captions: What an image shows, by its key.
        histograms: Counts ``[bins]`` and edges ``[bins + 1]``, by key.
    """

    images: dict[str, Image] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    histograms: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Album(Protocol):
    """A logger that takes pictures."""

    def show(self, pictures: Pictures, step: int) -> None:
        """Gives it the pictures of a step, counted from 0."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Gives it a table."""

    def summarize(self, values: Mapping[str, float]) -> None:
        """Gives it values that are the run's and not a step's."""


def albums(loggers: Iterable[Logger]) -> list[Album]:
    """Those of the loggers that take pictures: W&B's, TensorBoard's, MLflow's, and any with ``log_image``."""
    found: list[Album] = []
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            found.append(_Wandb(logger))
        elif isinstance(logger, TensorBoardLogger):
            found.append(_TensorBoard(logger))
        elif callable(getattr(logger, "log_image", None)):
            found.append(_WithLogImage(logger))
        elif callable(getattr(getattr(logger, "experiment", None), "log_image", None)) and hasattr(logger, "run_id"):
            found.append(_MLFlow(logger))
    return found


class _Wandb:
    def __init__(self, logger: WandbLogger) -> None:
        self._logger = logger

    def show(self, pictures: Pictures, step: int) -> None:
        from wandb import Histogram, Image

        values: dict[str, Any] = {
            key: Histogram(np_histogram=(counts.numpy(), edges.numpy()))
            for key, (counts, edges) in pictures.histograms.items()
        }
        for key, image in pictures.images.items():
            values[key] = Image(image, caption=pictures.captions.get(key))
        self._logger.log_metrics(values, step=step)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        from wandb import Table

        values: dict[str, Any] = {key: Table(columns=list(columns), data=list(rows))}
        self._logger.log_metrics(values, step=step)

    def summarize(self, values: Mapping[str, float]) -> None:
        self._logger.experiment.summary.update(dict(values))


class _TensorBoard:
    def __init__(self, logger: TensorBoardLogger) -> None:
        self._logger = logger

    def show(self, pictures: Pictures, step: int) -> None:
        import numpy as np

        writer = self._logger.experiment
        for key, image in pictures.images.items():
            writer.add_image(key, np.asarray(image), step, dataformats="HWC")
        for key, (counts, edges) in pictures.histograms.items():
            middles = (edges[:-1] + edges[1:]) / 2
            writer.add_histogram_raw(
                key,
                min=float(edges[0]),
                max=float(edges[-1]),
                num=int(counts.sum()),
                sum=float((counts * middles).sum()),
                sum_squares=float((counts * middles**2).sum()),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
        self._logger.experiment.add_text(key, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)

    def summarize(self, values: Mapping[str, float]) -> None:
        """TensorBoard has no summary of a run; its curves and the table at the end say the same."""


class _WithLogImage:
    """Lightning's own form: ``log_image(key, images, step=…)``."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def show(self, pictures: Pictures, step: int) -> None:
        for key, image in pictures.images.items():
            self._logger.log_image(key=key, images=[image], step=step)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """There is no form for tables that all such loggers share."""

    def summarize(self, values: Mapping[str, float]) -> None:
        """Nor one for summaries."""


class _MLFlow:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def show(self, pictures: Pictures, step: int) -> None:
        for key, image in pictures.images.items():
            self._logger.experiment.log_image(self._logger.run_id, image, key=key, step=step)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """MLflow's tables need pandas, which this package does without."""

    def summarize(self, values: Mapping[str, float]) -> None:
        """MLflow has the last value of every metric already."""


def has_pillow() -> bool:
    """Whether pictures can be drawn."""
    return importlib.util.find_spec("PIL") is not None


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)

import builtins
import importlib.util
import io
import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from torch import Tensor, nn

from lightning_bsqh import L0, BSQHStrategy, Cardinality
from lightning_bsqh.callbacks import MagnitudePruning, PictureMonitor, SparsityMonitor
from lightning_bsqh.callbacks.picture_monitor import layer_rows, nonzero_histogram
from lightning_bsqh.report.masks import draw_mask
from tests.callbacks.small import SmallModule, loader
from tests.wandb_files import final_state, history


class ConvModule(SmallModule):
    """With a convolution before the two layers, and accuracies that are best in the third epoch."""

    # The last one is that of a validation after the training.
    accuracies = (0.5, 0.25, 0.75, 0.5, 1.0)

    def __init__(self, own_optimizer: bool = False) -> None:
        super().__init__(own_optimizer)
        self.conv = nn.Conv1d(1, 3, 3, padding=1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        self.log("train_acc", 0.9)
        return super().training_step((self.conv(batch[0][:, None]).mean(1), batch[1]), batch_idx)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_acc", self.accuracies[self.current_epoch])
        self.log("val_loss", 7.0)


@pytest.fixture
def wandb_logger(tmp_path, monkeypatch):
    """An offline run, closed at the end whatever happens."""
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")  # the logger sets another and leaves it
    settings = wandb.Settings(silent=True, console="off")
    yield WandbLogger(project="test", save_dir=tmp_path, offline=True, settings=settings)
    wandb.finish()


def _close() -> Path:
    import wandb

    folder = Path(wandb.run.dir).parent
    wandb.finish()
    return folder


def _fit(logger, *callbacks: L.Callback, model: L.LightningModule | None = None, **options) -> L.Trainer:
    model = ConvModule() if model is None else model
    strategy = "auto" if model.own_optimizer else BSQHStrategy(Cardinality(sparsity=0.5))
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"strategy": strategy, "max_epochs": 4, "log_every_n_steps": 1, "default_root_dir": None, **options},
    )
    trainer.fit(model, loader(), loader())
    return trainer


def test_the_offline_run_read_back_by_wandb(wandb_logger) -> None:
    pytest.importorskip("PIL")
    trainer = _fit(wandb_logger, PictureMonitor(every_n_steps=5), SparsityMonitor(5))
    model = trainer.lightning_module
    trainer.validate(model, loader(), verbose=False)
    folder = _close()
    rows = history(folder)
    assert not any("step" in row for row in rows)
    drawn = [row for row in rows if "pictures/sparsity._type" in row]
    assert [row["trainer/global_step"] for row in drawn] == [4, 9, 14, 15]
    for row in drawn:
        assert {key for key in row if key.endswith("._type")} == {
            "pictures/sparsity._type", "masks/conv._type",
            *(f"weights/{layer}._type" for layer in ("conv", "first", "second")),
        }  # fmt: skip
        for key in ("pictures/sparsity", "masks/conv"):
            assert row[f"{key}._type"] == "image-file"
            assert (folder / "files" / row[f"{key}.path"]).read_bytes().startswith(b"\x89PNG")
    last = drawn[-1]
    for layer in ("conv", "first", "second"):
        assert sum(last[f"weights/{layer}.values"]) == int((getattr(model, layer).weight != 0).sum())
    assert last["masks/conv.caption"] == (
        "conv: 3 of 3 x 1 of 1 kernels, blue is not zero; filters (dim 0) row by row; one input channel"
    )
    (table,) = (row for row in rows if "pictures/layers._type" in row)
    assert (table["pictures/layers.nrows"], table["pictures/layers.ncols"]) == (3, 8)
    assert table["trainer/global_step"] == 15
    summary = final_state(folder)["summary"]
    assert summary["best/val_acc"] == 0.75
    # Of the end of the third epoch, where the ramp has ended.
    assert summary["best/val_acc_sparsity"] == pytest.approx(0.5, abs=0.02)
    assert not {"best/train_acc", "best/val_loss"} & set(summary)
    assert summary["final/sparsity"] == summary["sparsity/total"] == pytest.approx(0.5, abs=0.02)
    assert summary["final/nonzero"] == 33


def test_only_epochs_at_the_target_are_the_best(wandb_logger) -> None:
    # The third epoch, the best, lies within the ramp: only the fourth has all zeros.
    _fit(wandb_logger, PictureMonitor(), strategy=BSQHStrategy(Cardinality(sparsity=0.5, ramp=(0.7, 0.9))))
    summary = final_state(_close())["summary"]
    assert summary["best/val_acc"] == 0.5
    assert summary["best/val_acc_sparsity"] == pytest.approx(0.5, abs=0.02)


def test_with_magnitude_pruning_too(wandb_logger) -> None:
    pruning = MagnitudePruning(sparsity=0.5, ramp=(0.7, 0.9))
    _fit(wandb_logger, PictureMonitor(), pruning, model=ConvModule(own_optimizer=True))
    assert final_state(_close())["summary"]["best/val_acc"] == 0.5


def test_tensorboard_gets_the_same_pictures(tmp_path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    image = pytest.importorskip("PIL.Image")
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = _fit(logger, PictureMonitor(every_n_steps=5))
    read = events.EventAccumulator(str(tmp_path)).Reload()
    assert read.Tags()["images"] == ["pictures/sparsity", "masks/conv"]
    assert [event.step for event in read.Images("masks/conv")] == [4, 9, 14, 15]
    with image.open(io.BytesIO(read.Images("masks/conv")[-1].encoded_image_string)) as shown:
        expected = draw_mask(trainer.lightning_module.conv.weight != 0).on_white()
        assert shown.convert("RGB").tobytes() == expected.tobytes()
    last = read.Histograms("weights/first")[-1].histogram_value
    assert last.num == sum(last.bucket) == int((trainer.lightning_module.first.weight != 0).sum())
    (table,) = (tag for tag in read.Tags()["tensors"] if tag.startswith("pictures/layers"))
    text = read.Tensors(table)[0].tensor_proto.string_val[0].decode()
    assert "| layer | shape | weights |" in text
    assert "| conv | 3x1x3 | 9 |" in text


class _Album(Logger):
    """A logger with Lightning's ``log_image``."""

    name, version = "album", 0

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, int, tuple[int, int]]] = []

    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        pass

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.images += [(key, step, image.size) for image in images]


def test_any_logger_with_log_image_gets_bars_and_masks(tmp_path) -> None:
    pytest.importorskip("PIL")
    logger = _Album()
    _fit(logger, PictureMonitor(every_n_steps=100), default_root_dir=tmp_path)
    assert {(key, step) for key, step, _ in logger.images} == {("pictures/sparsity", 15), ("masks/conv", 15)}


def test_mlflow_gets_bars_and_masks(tmp_path, monkeypatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=tmp_path.as_uri(), artifact_location=(tmp_path / "files").as_uri())
    _fit(logger, PictureMonitor(every_n_steps=100), max_epochs=1, default_root_dir=tmp_path)
    names = {path.name for path in (tmp_path / "files").rglob("*.png")}
    assert len(names) == 2
    assert {name[:5] for name in names} == {"pictu", "masks"}


def test_another_optimizer(wandb_logger) -> None:
    _fit(wandb_logger, PictureMonitor(), model=ConvModule(own_optimizer=True), max_epochs=1)
    folder = _close()
    assert final_state(folder)["summary"]["final/sparsity"] == 0.0
    assert [row["trainer/global_step"] for row in history(folder) if "weights/conv._type" in row] == [3]


def test_without_regularised_weights_all_are_drawn(wandb_logger) -> None:
    _fit(wandb_logger, PictureMonitor(), max_epochs=1, strategy=BSQHStrategy(L0(rho=1e-4), regularize=[]))
    assert {"weights/first", "weights/second", "masks/conv"} <= set(final_state(_close())["summary"])


@pytest.mark.parametrize("own", [True, False])
def test_a_logger_without_images_is_told_once(tmp_path, own: bool) -> None:
    logger = CSVLogger(tmp_path, name="", version="") if own else False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = _fit(logger, PictureMonitor(every_n_steps=1), max_epochs=2, default_root_dir=tmp_path)
    assert trainer.global_step == 8
    (message,) = (str(w.message) for w in caught if "PictureMonitor" in str(w.message))
    assert f"the Trainer's loggers are: {'CSVLogger' if own else 'none'}" in message
    assert "TensorBoardLogger" in message
    assert "pip install wandb" in message


def test_wandb_is_not_needed_where_it_is_not_used(tmp_path, monkeypatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *args, **kwargs):
        if name.partition(".")[0] in ("wandb", "PIL"):
            raise ModuleNotFoundError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.warns(UserWarning, match="goes on without pictures"):
        assert _fit(False, PictureMonitor(1), max_epochs=1, default_root_dir=tmp_path).state.finished


def test_without_pillow_histograms_and_table_remain(wandb_logger, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "PIL" else found(name, *rest))
    with pytest.warns(UserWarning, match="pip install pillow"):
        _fit(wandb_logger, PictureMonitor(), max_epochs=1)
    summary = final_state(_close())["summary"]
    assert "pictures/sparsity" not in summary
    assert {"weights/conv", "pictures/layers"} <= set(summary)


@pytest.mark.parametrize("argument", ["every_n_steps", "max_filters"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)])
def test_refuses_bad_numbers(argument: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"{argument} must be .* got {value}"):
        PictureMonitor(**{argument: value})


def test_the_best_outlives_a_checkpoint() -> None:
    monitor = PictureMonitor()
    monitor._best = {"val_acc": (0.75, 0.5)}
    resumed = PictureMonitor()
    resumed.load_state_dict(monitor.state_dict())
    assert resumed._best == monitor._best


def test_histogram_of_the_weights_that_are_left() -> None:
    counts, edges = nonzero_histogram([torch.tensor([[0.0, 1.0], [-1.0, math.nan]]), torch.tensor([2.0, -math.inf])])
    assert counts.sum() == 3
    assert (counts[0], counts[-1], edges[0], edges[-1]) == (1, 1, -1.0, 2.0)
    counts, edges = nonzero_histogram([torch.full((3,), -4.0)])
    assert (counts.sum(), edges[0], edges[-1]) == (3, -6.0, -2.0)
    counts, edges = nonzero_histogram([torch.zeros(3)])
    assert (counts.sum(), edges[0], edges[-1]) == (0, -1.0, 1.0)
    assert len(counts) == 64


def test_rows_of_the_table() -> None:
    weights = {"a": [torch.tensor([[0.0, 0.0], [-2.0, 0.5]])], "b": [torch.zeros(2, 1, 3)]}
    assert layer_rows(weights) == [
        ["a", "2x2", 4, 2, 0.5, 0.5, 2.0, "1 of 2 rows"],
        ["b", "2x1x3", 6, 0, 1.0, None, None, "2 of 2 filters"],
    ]

"""What a training has left in its run folder: the network, its data and an example of its input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from lightning_bsqh.export.comparison import as_inputs
from lightning_bsqh.export.sparse_file import load_sparse
from lightning_bsqh.namespace import is_overridden, pl


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        model: The module with the checkpoint's weights, in evaluation mode.
        data: Its data; None if the configuration names none.
        checkpoint: The file that the weights come from.
    """

    model: pl.LightningModule
    data: pl.LightningDataModule | None
    checkpoint: Path


def load_run(folder: str | Path, checkpoint: str | Path | None = None) -> Run:
    """Makes the module and the data again that ``config.yaml`` names, with the weights of a checkpoint.

    Args:
        folder: A folder with a ``config.yaml``, as ``lightning-bsqh fit`` and ``lightning-bsqh demo`` leave it.
        checkpoint: The checkpoint; None takes the one below the folder, of several the one called ``best``, or else
            the newest. It is read without executing anything in it.

    Raises:
        ValueError: If a file is missing, damaged, or does not fit the others.
        ModuleNotFoundError: If jsonargparse is not installed.
    """
    folder = Path(folder)
    config = _read_config(folder / "config.yaml")
    path = _find_checkpoint(folder) if checkpoint is None else Path(checkpoint)
    state = _read_checkpoint(path)
    model, data = _instantiate(config, folder / "config.yaml")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"The weights in {path} do not fit the model that {folder}/config.yaml names: {error}"
        ) from error
    return Run(model.eval(), data, path)


def example_inputs(run: Run, batch_size: int) -> tuple[Any, ...]:
    """The inputs of a batch of the run's data: test, else validation, else training; or the module's own example.

    Args:
        run: The run.
        batch_size: At most so many samples.

    Raises:
        ValueError: If there is neither.
    """
    batch = _first_batch(run.data)
    if batch is None:
        example = run.model.example_input_array
        if example is None:
            raise ValueError(
                "The run has neither data nor a module with an example_input_array to take an example from."
            )
        return _cut(as_inputs(example), batch_size)
    # Inputs come first in a batch, then what they are compared with.
    first = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(first, Tensor):
        raise ValueError(f"The data's batches must begin with a tensor, this one is {type(first).__name__}.")
    return _cut((first,), batch_size)


def metrics_of_test(run: Run, network: nn.Module | None = None) -> dict[str, float]:
    """What the module's own test gives on the run's test data; nothing if there are none.

    Args:
        run: The run.
        network: Takes the place of the module's forward; None tests the module as it is.

    Returns:
        The metrics by name; nothing if the test does not go through the module's forward.
    """
    data, model = run.data, run.model
    if data is None or not (is_overridden("test_dataloader", data) and is_overridden("test_step", model)):
        return {}
    calls: list[int] = []
    original = model.forward
    replaced = original if network is None else network

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return replaced(*args, **kwargs)

    # As an attribute of its own: a module given to nn.Module's own setattr would become a submodule.
    object.__setattr__(model, "forward", forward)
    try:
        results = _quiet_trainer().test(model, datamodule=data, verbose=False)
    finally:
        object.__delattr__(model, "forward")
    return {name: float(value) for result in results for name, value in result.items()} if calls else {}


def _quiet_trainer() -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} is no run folder: it has no config.yaml.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    model = config.get("model") if isinstance(config, dict) else None
    if not (isinstance(model, dict) and isinstance(model.get("class_path"), str)):
        raise ValueError(f"{path} names no class for the model (model.class_path), so it cannot be made again.")
    return config


def _find_checkpoint(folder: Path) -> Path:
    files = [path for kind in ("*.ckpt", "*.safetensors") for path in folder.rglob(kind)]
    if not files:
        raise ValueError(f"There is no checkpoint (*.ckpt, *.safetensors) below {folder}: name one.")
    return max(files, key=lambda path: (path.stem.startswith("best"), path.stat().st_mtime))


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}.")
    if path.suffix == ".safetensors":
        return load_sparse(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # bytes that are no checkpoint raise whatever they lead torch's reader to
        raise ValueError(f"{path} cannot be read as a checkpoint without executing what it holds: {error}") from error
    return state


def _instantiate(config: dict[str, Any], path: Path) -> tuple[pl.LightningModule, pl.LightningDataModule | None]:
    try:
        from jsonargparse import ArgumentError, ArgumentParser
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Run folders need jsonargparse: pip install "jsonargparse[signatures]"') from error
    # Class paths may name the user's own modules in this folder, as under ``python -m``.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningModule, "model")
    parser.add_subclass_arguments(pl.LightningDataModule, "data", required=False)
    wanted = {name: config[name] for name in ("model", "data") if config.get(name) is not None}
    try:
        # Its older name is deprecated.
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        made = instantiate(parser.parse_object(wanted))
    except ArgumentError as error:
        raise ValueError(f"The model or the data of {path} cannot be made again: {error}") from error
    return made["model"], made.get("data")


def _first_batch(data: pl.LightningDataModule | None) -> Any:
    if data is None:
        return None
    data.prepare_data()
    for stage, name in (("test", "test_dataloader"), ("validate", "val_dataloader"), ("fit", "train_dataloader")):
        if is_overridden(name, data):
            data.setup(stage)
            loader: Iterable[Any] | None = getattr(data, name)()
            if loader is not None:
                return next(iter(loader), None)
    return None


def _cut(inputs: tuple[Any, ...], batch_size: int) -> tuple[Any, ...]:
    return tuple(value[:batch_size] if isinstance(value, Tensor) and value.dim() else value for value in inputs)

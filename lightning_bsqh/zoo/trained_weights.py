"""The weights of a trained network, from a checkpoint or a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_bsqh.export.sparse_file import load_sparse


def load_weights(network: nn.Module, file: str | Path) -> None:
    """Loads parameters and buffers into a network, all of them or none.

    Args:
        network: The network.
        file: What ``torch.save`` wrote: a ``state_dict`` of the network, or a checkpoint of a LightningModule that
            keeps it as ``network``; or what ``lightning_bsqh.export.save_sparse`` wrote, ending with ``.safetensors``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no weights, or names or shapes are not those of the network.
    """
    state = _of_network(_read(file))
    own = network.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or [n for n, v in own.items() if _shape(v) != _shape(state[n])]
    if wrong:
        raise ValueError(
            f"{file} holds the weights of another network than {type(network).__name__}: {', '.join(wrong[:6])}"
            " differ in name or shape."
        )
    network.load_state_dict(state)


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None


def _read(file: str | Path) -> Mapping[str, Any]:
    if str(file).endswith(".safetensors"):
        return load_sparse(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        # Bytes that are no weights raise whatever they lead the reader to.
        raise ValueError(f"weights={str(file)!r} cannot be read as weights that torch.save has written.") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(f"weights={str(file)!r} holds no state_dict: save network.state_dict() by torch.save.")
    return state


def _of_network(state: Mapping[str, Any]) -> dict[str, Tensor]:
    prefix = "network."
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return inner or dict(state)

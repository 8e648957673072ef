"""Linear layers in int8, by torchao: their outputs differ by more than rounding."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

#: Names of the kernels, and how far their outputs may be off, as a share of the largest.
INT8_KERNELS = ("int8", "int8, compiled")
INT8_TOLERANCE = 0.1

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Int8(nn.Module):
    """A linear layer whose weights and inputs are rounded to int8, each row with a scale of its own; zeros stay zeros.

    Args:
        layer: The layer; it is copied.
        compiled: Whether ``torch.compile`` makes one kernel of rounding and product; by itself each is a call.
    """

    def __init__(self, layer: nn.Linear, compiled: bool = False) -> None:
        super().__init__()
        quantize, config = _torchao()
        # A copy by itself: quantize_ replaces the weights of the layers of a network.
        network = nn.Sequential(copy.deepcopy(layer).requires_grad_(False)).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize(network, config())
        self.layer = network[0]
        # Code of its own for each layer, or torch.compile would give up after eight of different sizes.
        self._run: list[Callable[..., Any]] = [torch.compile(fx.symbolic_trace(network))] if compiled else [self.layer]

    def forward(self, x: Tensor) -> Tensor:
        """From ``[*, in_features]`` to ``[*, out_features]``."""
        return self._run[0](x)


def int8_candidates(layer: nn.Module) -> dict[str, Callable[[Any], nn.Module]]:
    """The ways to compute a linear layer in int8, by name; none for layers of other kinds and in float64."""
    if type(layer) is not nn.Linear or layer.weight.dtype not in _DTYPES:
        return {}
    plain, compiled = INT8_KERNELS
    return {plain: Int8, compiled: partial(Int8, compiled=True)}


def check_torchao() -> None:
    """Raises unless torchao can be used.

    Raises:
        ModuleNotFoundError: If it is not installed.
        RuntimeError: If the one that is installed does not fit torch.
    """
    _torchao()


def _torchao() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('int8=True needs torchao: pip install "lightning-bsqh[int8]"') from error
    except (ImportError, AttributeError) as error:  # it names what only other versions of torch have
        raise RuntimeError(
            f"int8=True needs a torchao that fits torch {torch.__version__}: the one that is installed cannot be"
            f" imported ({error})."
        ) from error
    return quantize_, Int8DynamicActivationInt8WeightConfig

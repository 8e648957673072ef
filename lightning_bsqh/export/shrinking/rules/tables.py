"""Which rule belongs to which module, function or method."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lightning_bsqh.export.shrinking.flow import Rule
from lightning_bsqh.export.shrinking.rules import elementwise, joining, layers, pooling, shapes

_ACTIVATIONS = [
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh"),
    *("hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "tanhshrink", "softshrink", "hardshrink"),
    *("threshold", "exp", "expm1", "abs", "neg", "negative", "square", "clamp", "clip", "sin", "cos", "erf", "sqrt"),
    *("rsqrt", "log1p", "reciprocal"),
]
_ACTIVATION_MODULES = [
    *("ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh", "Hardtanh"),
    *("Hardswish", "Hardsigmoid", "Softplus", "Softsign", "LogSigmoid", "Tanhshrink", "Softshrink", "Hardshrink"),
    "Threshold",
]
_TWO_SIDED = ["add", "sub", "mul", "div", "truediv", "multiply", "maximum", "minimum", "pow", "true_divide"]
_VIEWS = [
    "permute",
    "transpose",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "squeeze",
    "unsqueeze",
    "narrow",
    "select",
]
_SAME = ["contiguous", "clone", "detach"]
_REDUCED = ["mean", "amax", "amin"]


def _functions(names: Iterable[str], rule: Rule, places: Iterable[Any] = (torch, F)) -> dict[Callable[..., Any], Rule]:
    return {getattr(place, name): rule for place in places for name in names if hasattr(place, name)}


def _pools() -> tuple[dict[type[nn.Module], Rule], dict[Callable[..., Any], Rule]]:
    modules: dict[type[nn.Module], Rule] = {}
    functions: dict[Callable[..., Any], Rule] = {}
    for dims in (1, 2, 3):
        for name, rule in (("Max", pooling.largest), ("Avg", pooling.average)):
            modules[getattr(nn, f"{name}Pool{dims}d")] = partial(rule, dims=dims)
            modules[getattr(nn, f"Adaptive{name}Pool{dims}d")] = partial(pooling.adaptive, dims=dims)
            for place in (torch, F):
                functions |= _functions([f"{name.lower()}_pool{dims}d"], partial(rule, dims=dims), [place])
                adaptive = partial(pooling.adaptive, dims=dims)
                functions |= _functions([f"adaptive_{name.lower()}_pool{dims}d"], adaptive, [place])
    return modules, functions


_POOL_MODULES, _POOL_FUNCTIONS = _pools()

MODULES: dict[type[nn.Module], Rule] = {
    **{getattr(nn, name): elementwise.elementwise for name in _ACTIVATION_MODULES},
    **dict.fromkeys((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), layers.mixing),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), layers.mixing),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), layers.per_channel),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), layers.per_channel),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), elementwise.dropout),
    nn.PReLU: layers.per_channel,
    nn.Embedding: layers.embedding,
    nn.Identity: elementwise.same,
    nn.Flatten: shapes.reshaped,
    nn.Upsample: pooling.adaptive,
    nn.Softmax: elementwise.softmax,
    nn.LogSoftmax: elementwise.softmax,
    **_POOL_MODULES,
}

FUNCTIONS: dict[Callable[..., Any], Rule] = {
    **_functions(_ACTIVATIONS, elementwise.elementwise),
    **_functions([f"{name}_" for name in _ACTIVATIONS], elementwise.elementwise),
    **_functions(_TWO_SIDED, elementwise.binary, (torch, operator)),
    **_functions([f"i{name}" for name in _TWO_SIDED], elementwise.binary, [operator]),
    **_functions(["neg"], elementwise.elementwise, [operator]),
    **_functions(["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"], elementwise.dropout, [F]),
    **_functions(["softmax", "log_softmax"], elementwise.softmax),
    **_functions(_VIEWS, shapes.moved, [torch]),
    **_functions(["chunk", "split"], shapes.divided, [torch]),
    **_functions(["flatten", "reshape"], shapes.reshaped, [torch]),
    **_functions(_REDUCED, pooling.reduced, [torch]),
    **_functions(["cat", "concat", "concatenate"], joining.concatenated, [torch]),
    **_functions(["matmul", "bmm"], joining.matrix_product, [torch]),
    torch.sum: pooling.summed,
    operator.matmul: joining.matrix_product,
    operator.getitem: shapes.indexed,
    getattr: layers.parameter_or_shape,
    F.pad: joining.padded,
    F.interpolate: pooling.adaptive,
    F.scaled_dot_product_attention: joining.attention,
    **_POOL_FUNCTIONS,
}

METHODS: dict[str, Rule] = {
    **dict.fromkeys([*_ACTIVATIONS, *(f"{name}_" for name in _ACTIVATIONS)], elementwise.elementwise),
    **dict.fromkeys([*_TWO_SIDED, *(f"{name}_" for name in _TWO_SIDED)], elementwise.binary),
    **dict.fromkeys(("softmax", "log_softmax"), elementwise.softmax),
    **dict.fromkeys(_VIEWS, shapes.moved),
    **dict.fromkeys(_SAME, elementwise.same),
    **dict.fromkeys(("chunk", "split"), shapes.divided),
    **dict.fromkeys(("view", "reshape", "flatten"), shapes.reshaped),
    **dict.fromkeys(_REDUCED, pooling.reduced),
    **dict.fromkeys(("matmul", "bmm"), joining.matrix_product),
    "sum": pooling.summed,
    "size": shapes.size_read,
    "dim": shapes.size_read,
}

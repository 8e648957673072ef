"""Only what multiplies features with features is regularized by default, whatever the network is made of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lightning_bsqh import BSQHOptimizer
from lightning_bsqh.network.layers import find_layers
from lightning_bsqh.network.roles import role_of


def own(kind: str, **shapes: tuple[int, ...]) -> nn.Module:
    """A module of a class of that name, with parameters of these shapes."""
    module = type(kind, (nn.Module,), {})()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.ones(shape)))
    return module


def pruned(module: nn.Module) -> nn.Module:
    return prune.random_unstructured(module, "weight", 0.5)


#: Kinds of modules: how to make one with ``n`` features, and the names that are weights.
PARTS: dict[str, tuple[Callable[[int], nn.Module], set[str]]] = {
    "linear": (lambda n: nn.Linear(n, 3), {"weight"}),
    "one output": (lambda n: nn.Linear(n, 1), {"weight"}),
    "one input": (lambda n: nn.Linear(1, n, bias=False), {"weight"}),
    "bilinear": (lambda n: nn.Bilinear(n, 2, 3), {"weight"}),
    "conv": (lambda n: nn.Conv2d(n, 2, 3), {"weight"}),
    "pointwise": (lambda n: nn.Conv2d(n, 1, 1), {"weight"}),
    "depthwise": (lambda n: nn.Conv2d(n, n, (3, 1), groups=n), {"weight"}),
    "transposed": (lambda n: nn.ConvTranspose1d(n, 2, 2), {"weight"}),
    "embedding": (lambda n: nn.Embedding(7, n), {"weight"}),
    "gru": (lambda n: nn.GRU(3, n, 2), {"weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"}),
    "lstm": (lambda n: nn.LSTM(3, n + 1, proj_size=n), {"weight_ih_l0", "weight_hh_l0", "weight_hr_l0"}),
    "cell": (lambda n: nn.RNNCell(2, n), {"weight_ih", "weight_hh"}),
    "attention": (lambda n: nn.MultiheadAttention(2 * n, 2, add_bias_kv=True), {"in_proj_weight", "out_proj.weight"}),
    "attention of three": (
        lambda n: nn.MultiheadAttention(2 * n, 2, kdim=1, vdim=3),
        {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"},
    ),
    "batch norm": (nn.BatchNorm2d, set()),
    "group norm": (lambda n: nn.GroupNorm(1, n), set()),
    "layer norm": (lambda n: nn.LayerNorm([n, n]), set()),
    "rms norm": (lambda n: nn.RMSNorm([n, 2]), set()),
    "prelu": (lambda n: nn.PReLU(n), set()),
    "layer norm 2d": (lambda n: own("LayerNorm2d", weight=(1, n, 1, 1), bias=(1, n, 1, 1)), set()),
    "own normalization": (lambda n: own("Normalisation", weight=(n, 3)), set()),
    "response": (lambda n: own("GRN", gamma=(1, 1, 1, n), beta=(1, 1, 1, n)), set()),
    "affine": (lambda n: own("Affine", weight=(1, n), bias=(1, n), alpha=(1, 1, n), shift=(n, 1, 1)), set()),
    "layer scale": (lambda n: own("Block", layer_scale=(n, 1, 1), layer_scale_2=(n, 2)), set()),
    "film": (lambda n: own("Film", gamma=(4, n), beta=(4, n)), set()),
    "positions": (lambda n: own("Encoder", pos_embedding=(1, 4, n), cls_token=(1, 2, n), mask_token=(1, 1, n)), set()),
    "window": (lambda n: own("Attention", relative_position_bias_table=(9, n), qkv=(3, n)), {"qkv"}),
    "low rank": (lambda n: own("LoRA", lora_A=(2, n), lora_B=(3, 2)), {"lora_A", "lora_B"}),
    "matrix": (lambda n: own("Own", weight=(1, n)), {"weight"}),
    "norm linear": (lambda n: own("NormLinear", weight=(2, n)), {"weight"}),
    "weight norm": (lambda n: parametrizations.weight_norm(nn.Linear(n, 1)), {"parametrizations.weight.original1"}),
    "spectral norm": (
        lambda n: parametrizations.spectral_norm(nn.Conv2d(n, 1, 1)),
        {"parametrizations.weight.original"},
    ),
    "orthogonal": (lambda n: parametrizations.orthogonal(nn.Linear(n, n)), {"parametrizations.weight.original"}),
    "pruned": (lambda n: pruned(nn.Linear(n, 3)), {"weight_orig"}),
}


@pytest.mark.parametrize("part", PARTS)
def test_each_kind(part: str) -> None:
    make, right = PARTS[part]
    assert regularized(make(4)) == right


def regularized(network: nn.Module) -> set[str]:
    return {name for layer in find_layers(network) for name in layer.regularized}


def nested(parts: list[tuple[str, nn.Module]], depths: list[int]) -> tuple[nn.Module, dict[str, str]]:
    """The parts in containers of containers, and the path of each."""
    network, paths = nn.Module(), {}
    for i, ((name, module), depth) in enumerate(zip(parts, depths, strict=True)):
        for _ in range(depth):
            module = nn.Sequential(nn.ReLU(), module)
        key = f"{name}{i}"
        network.add_module(key, module)
        paths[f"{key}{'.1' * depth}"] = name
    return network, paths


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_generated_networks(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=6))
    names = data.draw(st.lists(st.sampled_from(["norm", "head", "fc", "gamma", "block"]), min_size=6, max_size=6))
    depths = data.draw(st.lists(st.integers(0, 2), min_size=len(kinds), max_size=len(kinds)))
    sizes = data.draw(st.lists(st.integers(2, 5), min_size=len(kinds), max_size=len(kinds)))
    parts = [(name, PARTS[kind][0](n)) for name, kind, n in zip(names, kinds, sizes, strict=False)]
    network, paths = nested(parts, depths)
    right = {f"{path}.{n}" for path, kind in zip(paths, kinds, strict=True) for n in PARTS[kind][1]}
    assert regularized(network) == right


@pytest.mark.parametrize(
    ("name", "shape", "right"),
    [
        ("fc.weight", (1, 5), True),
        ("fc.bias", (5,), False),
        ("norm.weight", (1, 5, 1, 1), False),
        ("transformer.wpe.weight", (8, 4), False),
        ("embeddings.position_embeddings.weight", (8, 4), False),
        ("embeddings.word_embeddings.weight", (8, 4), True),
        ("block.0.layer.0.SelfAttention.relative_attention_bias.weight", (8, 4), False),
        ("encoder.class_token", (1, 2, 4), False),
        ("lstm.weight_hh_l0_reverse", (8, 2), True),
        ("mixing", (3, 3), True),
    ],
)
def test_names_without_a_network(name: str, shape: tuple[int, ...], right: bool) -> None:
    assert role_of(name, torch.ones(shape)).is_weight is right


def test_a_decision_by_shape_alone_is_marked() -> None:
    roles: dict[str, bool] = {}
    for layer in find_layers(nn.Sequential(nn.Linear(4, 4), own("Own", mixing=(4, 4), factor=(1, 4)))):
        roles |= {name: layer.roles[name].is_sure for name in layer.parameters}
    assert roles == {"0.weight": True, "0.bias": True, "1.mixing": False, "1.factor": False}


def test_a_pattern_has_the_last_word() -> None:
    network = nn.Sequential(nn.Linear(4, 4), own("Affine", alpha=(1, 1, 4)))
    optimizer = BSQHOptimizer(network, regularize=["1.alpha"], total_steps=9)
    (weights,) = optimizer.regularized_weights().values()
    tensor: Tensor = weights[0]
    assert tensor is network[1].alpha

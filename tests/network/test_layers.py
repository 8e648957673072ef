"""Which modules are the layers, and which tensors R acts on (method §1)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_bsqh.network.layers import find_layers


class Net(nn.Module):
    """Every kind of tensor that the default rule has to tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.features = nn.Sequential(nn.Conv2d(2, 2, 3, bias=False), nn.ReLU())
        self.layer_norm = nn.LayerNorm((4, 4))
        self.fc3 = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(1))
        self.mixing = nn.Parameter(torch.ones(2, 2))


def regularized(params: Any, patterns: Any = None) -> set[str]:
    return set().union(*(layer.regularized for layer in find_layers(params, patterns)))


WEIGHTS = {"mixing", "conv1.weight", "features.0.weight", "fc3.weight"}


def test_names_order_and_parameters() -> None:
    layers = find_layers(Net())
    # The module's own parameters come first, under its class's name.
    assert [layer.name for layer in layers] == ["Net", "conv1", "norm", "features.0", "layer_norm", "fc3"]
    assert list(layers[0].parameters) == ["scale", "mixing"]
    assert list(layers[1].parameters) == ["conv1.weight", "conv1.bias"]
    assert list(layers[3].parameters) == ["features.0.weight"]


def test_parameters_are_those_of_the_module_each_once() -> None:
    net = Net()
    found = {name: p for layer in find_layers(net) for name, p in layer.parameters.items()}
    assert found.keys() == dict(net.named_parameters()).keys()
    assert all(found[name] is parameter for name, parameter in net.named_parameters())


def test_by_default_weights_but_no_biases_and_no_normalisations() -> None:
    # The LayerNorm's parameters have two dimensions here and are none the less left out.
    assert regularized(Net()) == WEIGHTS


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm([2, 2])]
)
def test_normalisations(norm: nn.Module) -> None:
    assert regularized(nn.Sequential(norm)) == set()


def test_a_normalisation_of_the_users_own() -> None:
    class ScaleNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))

    assert regularized(nn.Sequential(ScaleNorm())) == set()


def test_a_bias_of_two_dimensions() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))

    assert regularized(nn.ModuleDict({"a": Attention()})) == {"a.weight"}


def test_recurrent_layers_and_attention() -> None:
    assert regularized(nn.LSTM(2, 3)) == {"weight_ih_l0", "weight_hh_l0"}
    assert regularized(nn.MultiheadAttention(4, 2)) == {"in_proj_weight", "out_proj.weight"}


def test_frozen_parameters_are_listed_and_not_trained() -> None:
    net = Net()
    net.conv1.requires_grad_(False)
    net.fc3.weight.requires_grad_(False)
    layers = {layer.name: layer for layer in find_layers(net)}
    assert list(layers["conv1"].parameters) == ["conv1.weight", "conv1.bias"]
    assert layers["conv1"].trained == {}
    assert list(layers["fc3"].trained) == ["fc3.bias"]
    net.conv1.requires_grad_(True)
    assert list(layers["conv1"].trained) == ["conv1.weight", "conv1.bias"]


def test_frozen_integers_are_left_out() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].register_parameter("codes", nn.Parameter(torch.ones(2, 2, dtype=torch.uint8), requires_grad=False))
    assert list(find_layers(net)[0].parameters) == ["0.weight", "0.bias"]


def test_shared_parameters_belong_to_the_first() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    layers = find_layers(nn.ModuleDict({"first": first, "second": second}))
    assert list(layers[0].parameters) == ["first.weight", "first.bias"]
    assert list(layers[1].parameters) == ["second.bias"]


def test_a_module_that_occurs_twice() -> None:
    layer = nn.Linear(2, 2)
    assert [found.name for found in find_layers(nn.Sequential(layer, nn.ReLU(), layer))] == ["0"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["conv*"], {"conv1.weight"}),
        (["conv1", "fc3"], {"conv1.weight", "fc3.weight"}),
        (["fc3.bias"], {"fc3.bias"}),
        (["*.bias"], {"conv1.bias", "norm.bias", "layer_norm.bias", "fc3.bias"}),
        (["fc3", "fc3.bias"], {"fc3.weight", "fc3.bias"}),
        (["!fc3"], WEIGHTS - {"fc3.weight"}),
        (["!fc3", "!conv1"], WEIGHTS - {"fc3.weight", "conv1.weight"}),
        (["*"], WEIGHTS),
        (["*", "!fc3.weight", "fc3.bias"], WEIGHTS - {"fc3.weight"} | {"fc3.bias"}),
        (["*.*"], {"features.0.weight"}),
        (["*.weight"], {"conv1.weight", "norm.weight", "features.0.weight", "layer_norm.weight", "fc3.weight"}),
        (["fc3.bias", "conv1", "!fc*"], {"conv1.weight"}),
        (["mixing", "scale"], {"mixing", "scale"}),
        (["!fc3", "fc3.bias"], (WEIGHTS - {"fc3.weight"}) | {"fc3.bias"}),
        (["norm"], set()),
        (["norm.weight"], {"norm.weight"}),
        (["conv[0-9]"], {"conv1.weight"}),
        (["conv*", "!conv*"], set()),
        ([], set()),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_patterns(patterns: list[str], expected: set[str]) -> None:
    assert regularized(Net(), patterns) == expected


def test_a_tensor_whose_layer_bears_its_own_name() -> None:
    assert regularized(Net().named_parameters(), ["scale"]) == {"scale"}


@pytest.mark.parametrize("pattern", ["conv9", "!conv9", "weight", "Conv1"])
def test_a_pattern_that_matches_nothing_is_named(pattern: str) -> None:
    with pytest.raises(ValueError, match="regularize: the pattern") as raised:
        find_layers(Net(), [pattern])
    assert repr(pattern) in str(raised.value)
    assert "features.0" in str(raised.value)


@pytest.mark.parametrize("patterns", ["conv*", [""], ["!"], [3], [None]])
def test_patterns_that_are_none(patterns: Any) -> None:
    with pytest.raises(ValueError, match="regularize must be a list of name patterns"):
        find_layers(Net(), patterns)


def test_tensors() -> None:
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    layers = find_layers([weight, bias])
    assert [layer.name for layer in layers] == ["layer0", "layer1"]
    assert regularized([weight, bias]) == {"layer0.0"}


def test_named_parameters_group_by_module() -> None:
    net = Net()
    layers = find_layers(net.named_parameters())
    assert [layer.name for layer in layers] == ["scale", "mixing", "conv1", "norm", "features.0", "layer_norm", "fc3"]
    assert list(layers[2].parameters) == ["conv1.weight", "conv1.bias"]


def test_parameter_groups() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": a.parameters(), "name": "first"}, {"params": list(b.named_parameters())}]
    layers = find_layers(groups)
    assert [layer.name for layer in layers] == ["first", "layer1"]
    assert list(layers[0].parameters) == ["first.0", "first.1"]
    assert list(layers[1].parameters) == ["weight", "bias"]
    assert layers[0].regularized == {"first.0"}
    assert layers[1].regularized == {"weight"}


def test_one_tensor_as_params_of_a_group() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    (layer,) = find_layers([{"params": weight}])
    assert layer.parameters == {"layer0.0": weight}


def test_layers_found_before_are_taken_as_they_are() -> None:
    layers = find_layers(Net())
    assert find_layers(layers) == layers


def test_a_tensor_that_comes_twice() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"params holds the tensor .* twice"):
        find_layers([weight, weight])


@pytest.mark.parametrize("params", [[], nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)])
def test_nothing_to_train(params: Any) -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        find_layers(params)


def test_entries_that_are_no_tensors() -> None:
    with pytest.raises(TypeError, match="params must hold tensors, got str"):
        find_layers(["weight"])


def test_complex_parameters_are_named() -> None:
    net = nn.Module()
    net.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"weight has dtype torch\.complex64"):
        find_layers(net)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.block2 = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sequential(nn.Conv2d(2, 2, 1)))
        self.head = nn.Linear(4, 2)
        self.tied = nn.Linear(4, 2, bias=False)
        self.tied.weight = self.head.weight


def test_layers_by_patterns() -> None:
    net = Blocks()
    layers = {layer.name: layer for layer in find_layers(net, layers=["block*"])}
    assert list(layers) == ["block1", "block2", "head"]
    assert list(layers["block2"].parameters) == [
        "block2.0.weight",
        "block2.0.bias",
        "block2.1.0.weight",
        "block2.1.0.bias",
    ]
    assert layers["block1"].regularized == {"block1.0.weight"}
    assert layers["block1"].modules == [net.block1]
    assert layers["block1"].chosen
    assert not layers["block1"].is_affine
    # What no pattern claims is divided as by default; tied parameters belong to the first, which both modules call.
    assert layers["head"].modules == [net.head, net.tied]
    assert layers["head"].is_affine
    assert not layers["head"].chosen


def test_layers_by_a_predicate() -> None:
    names = [layer.name for layer in find_layers(Blocks(), layers=lambda name, m: isinstance(m, nn.Sequential))]
    assert names == ["block1", "block2", "head"]
    assert [layer.name for layer in find_layers(Blocks(), layers=lambda name, module: name == "")] == ["Blocks"]


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        (["conv*"], ValueError, r"layers: the pattern 'conv\*' matches no module; there are: block1, block1.0"),
        (["block1", "bl*1"], ValueError, r"'block1' and 'bl\*1' both claim the parameter 'block1.0.weight'"),
        (["block2", "block2.1"], ValueError, r"'block2' and 'block2.1' both claim the parameter 'block2.1.0.weight'"),
        (lambda name, module: False, ValueError, r"the predicate holds for no module"),
        ("block1", TypeError, r'layers must be "leaf", a list of name patterns .* got \'block1\''),
        ([], TypeError, r"layers must be"),
        ([3], TypeError, r"layers must be"),
    ],
)
def test_bad_layers(choice: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_layers(Blocks(), layers=choice)


def test_layers_need_the_network() -> None:
    with pytest.raises(ValueError, match=r"needs the network"):
        find_layers(Blocks().parameters(), layers=["block*"])


def test_a_container_of_layers_is_not_run_alone_unless_chosen() -> None:
    layers = find_layers(Net())
    assert [layer.name for layer in layers if not layer.can_be_run] == ["Net"]
    assert not layers[0].is_affine
    (whole,) = find_layers(Net(), layers=lambda name, module: name == "")
    assert whole.can_be_run

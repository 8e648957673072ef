"""Which modules are the layers λ_l, what they are called, and which of their tensors are regularised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn


@dataclass
class Layer:
    """One layer: a module's own parameters, under the module's path.

    Attributes:
        name: Path of the module in the network, such as ``"features.0"``.
        parameters: The trainable tensors by their full name, such as ``"features.0.weight"``.
        regularized: Full names of those on which R acts.
    """

    name: str
    parameters: dict[str, Tensor] = field(default_factory=dict)
    regularized: set[str] = field(default_factory=set)


def find_layers(params: nn.Module | Iterable[Any], regularize: Sequence[str] | None = None) -> list[Layer]:
    """Groups trainable parameters into layers, in the order in which the network defines them.

    A parameter that several modules share belongs to the first of them. By default R acts on
    tensors with two or more dimensions that are neither biases nor part of a normalisation (method §1).

    Args:
        params: A module; or layers found before; or pairs (name, tensor) as ``named_parameters()`` gives them;
            or tensors; or torch's parameter groups, dicts with ``params`` and optionally ``name``.
        regularize: Which tensors R acts on, as patterns in the manner of the shell. One that matches a
            layer's name (``"conv*"``) selects that layer's default tensors, else one that matches a
            parameter's full name (``"fc3.bias"``) that tensor itself; a leading ``"!"`` takes out the whole
            layer or the tensor. Where the first pattern takes out, the defaults are what it starts from.

    Raises:
        TypeError: If an entry of ``params`` is none of the above, or complex.
        ValueError: If there is no trainable parameter, one comes twice, or a pattern matches nothing.
    """
    if isinstance(params, nn.Module):
        layers = _from_module(params)
    else:
        entries = list(params)
        layers = entries if entries and all(isinstance(e, Layer) for e in entries) else _from_iterable(entries)
    layers = [layer for layer in layers if layer.parameters]
    if not layers:
        raise ValueError(
            "params holds no trainable parameter (none has requires_grad=True): there is nothing to train."
        )
    for layer in layers:
        for name, parameter in layer.parameters.items():
            if not parameter.is_floating_point():
                raise TypeError(f"params: {name} has dtype {parameter.dtype}; only real floating ones can be trained.")
    if regularize is not None:
        _select(layers, regularize)
    return layers


def _is_weight(name: str, parameter: Tensor) -> bool:
    return parameter.dim() >= 2 and name.rpartition(".")[2] != "bias"


def _from_module(module: nn.Module) -> list[Layer]:
    layers, seen = [], set()
    for path, child in module.named_modules():
        layer = Layer(path or type(module).__name__)
        # Layers such as LayerNorm over several axes have weights of two dimensions and more; BatchNorm's have one.
        is_normalisation = isinstance(child, (nn.LayerNorm, nn.RMSNorm)) or type(child).__name__.endswith("Norm")
        for short, parameter in child.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = f"{path}.{short}" if path else short
            layer.parameters[name] = parameter
            if _is_weight(name, parameter) and not is_normalisation:
                layer.regularized.add(name)
        layers.append(layer)
    return layers


def _from_iterable(entries: Sequence[Any]) -> list[Layer]:
    layers: dict[str, Layer] = {}
    seen: set[int] = set()

    def add(layer_name: str, name: str, parameter: Any) -> None:
        if not isinstance(parameter, Tensor):
            raise TypeError(f"params must hold tensors, got {type(parameter).__name__}.")
        if not parameter.requires_grad:
            return
        if id(parameter) in seen:
            raise ValueError(f"params holds the tensor {name!r} twice.")
        seen.add(id(parameter))
        layer = layers.setdefault(layer_name, Layer(layer_name))
        layer.parameters[name] = parameter
        if _is_weight(name, parameter):
            layer.regularized.add(name)

    for index, entry in enumerate(entries):
        if isinstance(entry, Mapping):
            layer_name = str(entry.get("name", f"layer{index}"))
            members = entry["params"]
            for j, member in enumerate([members] if isinstance(members, Tensor) else list(members)):
                short, tensor = member if isinstance(member, tuple) else (str(j), member)
                add(layer_name, short if isinstance(member, tuple) else f"{layer_name}.{short}", tensor)
        elif isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
            add(entry[0].rpartition(".")[0] or entry[0], entry[0], entry[1])
        else:
            add(f"layer{index}", f"layer{index}.0", entry)
    return list(layers.values())


def claim(layers: Sequence[Layer], patterns: Sequence[str]) -> dict[str, str]:
    """Which pattern claims which tensor, each as ``regularize=[pattern]`` selects; R acts on these and no others.

    Args:
        layers: The layers with what R acts on by default; set to what is claimed.
        patterns: Name patterns as in :func:`find_layers`.

    Returns:
        The pattern by the full names of the claimed tensors.

    Raises:
        ValueError: If a pattern claims nothing, or two claim the same tensor.
    """
    owners: dict[str, str] = {}
    for pattern in patterns:
        chosen = _chosen(layers, [pattern], "regularizer")
        if not chosen:
            raise ValueError(
                f"regularizer: the pattern {pattern!r} matches no weight that R acts on by default (no bias and no"
                ' normalisation): name the tensor itself, such as "fc3.bias", or leave the pattern out.'
            )
        for name in sorted(chosen & owners.keys()):
            raise ValueError(
                f"regularizer: the patterns {owners[name]!r} and {pattern!r} both claim the parameter {name!r}: narrow"
                " one of them, so that every tensor has one regularizer."
            )
        owners |= dict.fromkeys(chosen, pattern)
    for layer in layers:
        layer.regularized = owners.keys() & layer.parameters.keys()
    return owners


def _select(layers: Sequence[Layer], patterns: Sequence[str]) -> None:
    if isinstance(patterns, str) or not all(isinstance(p, str) and p.strip("!") for p in patterns):
        raise ValueError(f'regularize must be a list of name patterns such as ["conv*", "!fc3"], got {patterns!r}.')
    chosen = _chosen(layers, patterns, "regularize")
    for layer in layers:
        layer.regularized = chosen & layer.parameters.keys()


def _chosen(layers: Sequence[Layer], patterns: Sequence[str], option: str) -> set[str]:
    """Full names of the tensors that the patterns select; ``option`` names them in errors."""
    defaults = {name for layer in layers for name in layer.regularized}
    chosen = set(defaults) if patterns and patterns[0].startswith("!") else set()
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        takes_out = pattern.startswith("!")
        selected = [layer for layer in layers if fnmatchcase(layer.name, bare)]
        # "conv*" means layers, not all names that begin so: conv1.bias is no default tensor of conv1.
        matched = {n for layer in selected for n in (layer.parameters if takes_out else layer.regularized & defaults)}
        matched |= {
            n for layer in layers for n in layer.parameters if n == bare or (not selected and fnmatchcase(n, bare))
        }
        if not matched and not selected:
            names = ", ".join(layer.name for layer in layers)
            raise ValueError(f"{option}: the pattern {pattern!r} matches no layer and no parameter; layers: {names}.")
        chosen = chosen - matched if takes_out else chosen | matched
    return chosen

"""Which modules are the layers λ_l, what they are called, and which of their tensors are regularized."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lightning_bsqh._validation import names, shown
from lightning_bsqh.network.affine import is_affine_module
from lightning_bsqh.network.packing import check_real
from lightning_bsqh.network.roles import Role, role_of, tensors_of

#: Which modules are the layers: ``"leaf"``, name patterns, or a predicate of name and module.
LayerChoice = str | Sequence[str] | Callable[[str, nn.Module], bool]


@dataclass
class Layer:
    """One layer λ_l: a module and the parameters that it, or what is inside it, brings along.

    Attributes:
        name: Path of the module in the network, such as ``"features.0"``.
        parameters: The tensors by their full name, such as ``"features.0.weight"``; frozen ones, too, as they may be
            unfrozen later.
        regularized: Full names of those on which R acts, as far as they are trained.
        roles: What each tensor is, and why R acts on it by default or not.
        waiting: Full names of those that are not trained, because the user's optimizer has not been given them.
        modules: The modules whose calls are the layer: usually one; all that share its parameters if some are
            tied; none if the network is not known.
        chosen: Whether the user named the module as a layer.
        is_seen_affine: Whether the layer has been tried out and found to be affine in its parameters.
    """

    name: str
    parameters: dict[str, Tensor] = field(default_factory=dict)
    regularized: set[str] = field(default_factory=set)
    roles: dict[str, Role] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    modules: list[nn.Module] = field(default_factory=list)
    chosen: bool = False
    is_seen_affine: bool = False

    @property
    def given(self) -> list[Tensor]:
        """The tensors that the optimizer is given, frozen ones, too."""
        return [p for n, p in self.parameters.items() if n not in self.waiting]

    @property
    def trained(self) -> dict[str, Tensor]:
        """The tensors that are trained at present: given to the optimizer, and not frozen."""
        return {n: p for n, p in self.parameters.items() if n not in self.waiting and p.requires_grad}

    @property
    def is_affine(self) -> bool:
        """Whether λ_l is known to be affine in the parameters, so that the closed forms of method §3 are exact."""
        return self.is_seen_affine or all(is_affine_module(module) for module in self.modules)

    @property
    def can_be_watched(self) -> bool:
        """Whether the calls of its modules can be seen; TorchScript takes no hooks."""
        return bool(self.modules) and not any(isinstance(m, torch.jit.ScriptModule) for m in self.modules)

    @property
    def can_be_run(self) -> bool:
        """Whether the true K of the layer can be evaluated by running it alone.

        Not by default for a module that holds other layers: to run it is to run half the network.
        """
        return self.can_be_watched and (self.chosen or all(_is_leaf(module) for module in self.modules))

    @property
    def is_safeguarded(self) -> bool:
        """Whether a step is moved back for the sake of the layer's true K.

        For torch's recurrent modules only if the user named them: to run them alone costs a forward more per trial, and
        brings nothing (method §3).
        """
        is_recurrent = any(isinstance(module, (nn.RNNBase, nn.RNNCellBase)) for module in self.modules)
        return self.can_be_run and not self.is_affine and (self.chosen or not is_recurrent)


def find_layers(
    params: nn.Module | Iterable[Any], regularize: Sequence[str] | None = None, layers: LayerChoice = "leaf"
) -> list[Layer]:
    """Groups parameters into layers, in the order in which the network defines them.

    A parameter that several modules share belongs to the first of them. Frozen parameters are listed with the others.
    By default R acts on what multiplies features with features and on nothing else (method §1), see
    :func:`~lightning_bsqh.network.roles.role_of`.

    Args:
        params: A module; or layers found before; or pairs (name, tensor) as ``named_parameters()`` gives them;
            or tensors; or torch's parameter groups, dicts with ``params`` and optionally ``name``.
        regularize: Which tensors R acts on, as patterns in the manner of the shell. One that matches a
            layer's name (``"conv*"``) selects that layer's default tensors, else one that matches a
            parameter's full name (``"fc3.bias"``) that tensor itself; a leading ``"!"`` takes out the whole
            layer or the tensor. Where the first pattern takes out, the defaults are what it starts from.
        layers: Which modules of a network are the layers. ``"leaf"``: every module that has parameters of its own.
            Patterns in the manner of the shell (``["block*"]``) or a predicate of a module's path and the module:
            each match is one layer with all parameters inside it; of matches inside each other by one pattern the
            outermost counts; what is left over is divided as by ``"leaf"``.

    Raises:
        TypeError: If an entry of ``params`` is none of the above, or is complex and trained; if
            ``layers`` is none of the above.
        ValueError: If there is no trainable parameter, one comes twice, a pattern matches nothing, or two patterns
            of ``layers`` claim the same parameter.
    """
    if isinstance(params, nn.Module):
        found = _from_module(params, _chosen_modules(params, layers))
    else:
        if not (isinstance(layers, str) and layers == "leaf"):
            raise ValueError(
                f"layers={shown(layers)} needs the network: give the module itself instead of its parameters."
            )
        entries = _entries(params)
        found = entries if entries and all(isinstance(e, Layer) for e in entries) else _from_iterable(entries)
    found = [layer for layer in found if layer.parameters]
    if not any(p.requires_grad for layer in found for p in layer.parameters.values()):
        raise ValueError(
            "params holds no trainable parameter (none has requires_grad=True): there is nothing to train."
        )
    check_real({name: p for layer in found for name, p in layer.trained.items()})
    if regularize is not None:
        _select(found, regularize)
    return found


def acts_on_nothing(layers: Sequence[Layer]) -> str | None:
    """What to say if there is nothing that R acts on and the user has not chosen that; else None."""
    if any(layer.regularized or any(role.is_weight for role in layer.roles.values()) for layer in layers):
        return None
    return (
        "Nothing will be regularized, and no weight becomes zero: no parameter multiplies features with features, as"
        f" the weight of a linear layer does, among {', '.join(n for layer in layers for n in layer.parameters)[:200]}."
        " Choose tensors with regularize=[...]."
    )


def only_trained(layers: Sequence[Layer]) -> list[Layer]:
    """The layers without what is frozen, and without those of which nothing is left then."""
    for layer in layers:
        layer.parameters = layer.trained
        layer.regularized &= layer.parameters.keys()
    return [layer for layer in layers if layer.parameters]


def _entries(params: Any) -> list[Any]:
    """What ``params`` holds; a tensor by itself is one entry."""
    if isinstance(params, Tensor):
        return [params]
    if isinstance(params, (str, Mapping)) or not isinstance(params, Iterable):
        raise TypeError(
            "params must be the network itself, or an iterable of tensors, of pairs (name, tensor) or of dicts with"
            f" params and name, got {shown(params)}."
        )
    return list(params)


def check_layers(choice: LayerChoice) -> None:
    """Raises TypeError unless ``choice`` is something that :func:`find_layers` takes as ``layers``."""
    if choice == "leaf" if isinstance(choice, str) else callable(choice) and not isinstance(choice, nn.Module):
        return
    patterns: Any = choice
    is_list = isinstance(patterns, Sequence) and not isinstance(patterns, (str, bytes))
    if not is_list or not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise TypeError(
            f'layers must be "leaf", a list of name patterns such as ["block*"], or a predicate, got {shown(choice)}.'
        )


def _chosen_modules(network: nn.Module, choice: LayerChoice) -> dict[str, nn.Module]:
    """The modules that the user named as layers, by path."""
    check_layers(choice)
    if isinstance(choice, str):
        return {}
    if callable(choice):
        chosen = _outermost({path: m for path, m in network.named_modules() if _holds(choice, path, m)})
        if not chosen:
            raise ValueError("layers: the predicate holds for no module of the network.")
        return chosen
    chosen = {}
    claimed: dict[str, str] = {}
    for pattern in choice:
        matches = _outermost({path: m for path, m in network.named_modules() if path and fnmatchcase(path, pattern)})
        if not matches:
            paths = ", ".join(path for path, _ in network.named_modules() if path)
            raise ValueError(f"layers: the pattern {pattern!r} matches no module; there are: {paths}.")
        for path, module in matches.items():
            for short, _ in module.named_parameters(path):
                if claimed.setdefault(short, pattern) != pattern:
                    raise ValueError(
                        f"layers: the patterns {claimed[short]!r} and {pattern!r} both claim the parameter {short!r};"
                        " make one of them narrower."
                    )
        chosen |= matches
    return chosen


def _holds(predicate: Callable[[str, nn.Module], bool], path: str, module: nn.Module) -> bool:
    try:
        inspect.signature(predicate).bind(path, module)
    except TypeError as error:
        raise TypeError(f"layers: the predicate must take a name and a module: {error}.") from None
    except ValueError:  # Something built in, whose arguments cannot be told.
        pass
    return bool(predicate(path, module))


def _is_leaf(module: nn.Module) -> bool:
    return sum(1 for _ in module.parameters()) == sum(1 for _ in module.parameters(recurse=False))


def _outermost(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Leaves out what lies inside another one of them."""
    return {
        path: module
        for path, module in modules.items()
        if not any(path != other and (not other or path.startswith(other + ".")) for other in modules)
    }


def _from_module(network: nn.Module, chosen: Mapping[str, nn.Module]) -> list[Layer]:
    layers: dict[str, Layer] = {}
    owners: dict[int, Layer] = {}
    # Shared modules and parameters are met under each of their names, and belong to the first.
    for found in tensors_of(network):
        if not found.tensor.requires_grad and not found.tensor.is_floating_point():
            # Frozen integers, as quantization leaves them, are never trained.
            continue
        root = next((c for c in chosen if found.path == c or not c or found.path.startswith(c + ".")), None)
        name = found.path if root is None else root
        layer = layers.setdefault(name, Layer(name or type(network).__name__, chosen=root is not None))
        module = found.module if root is None else chosen[root]
        owner = owners.setdefault(id(found.tensor), layer)
        if all(module is not other for other in owner.modules):
            owner.modules.append(module)
        if owner is layer and all(found.tensor is not other for other in layer.parameters.values()):
            _add(layer, found.name, found.tensor, found.role)
    return list(layers.values())


def _add(layer: Layer, name: str, tensor: Tensor, role: Role) -> None:
    layer.parameters[name] = tensor
    layer.roles[name] = role
    if role.is_weight:
        layer.regularized.add(name)


def _from_iterable(entries: Sequence[Any]) -> list[Layer]:
    layers: dict[str, Layer] = {}
    seen: set[int] = set()

    def add(layer_name: str, name: str, parameter: Any) -> None:
        if not isinstance(parameter, Tensor):
            raise TypeError(f"params must hold tensors, got {type(parameter).__name__}.")
        if not parameter.is_leaf:
            raise ValueError(f"params: {name} is computed from other tensors; give the leaves, such as nn.Parameter.")
        if not parameter.requires_grad and not parameter.is_floating_point():
            return
        if id(parameter) in seen:
            raise ValueError(f"params holds the tensor {name!r} twice.")
        seen.add(id(parameter))
        layer = layers.setdefault(layer_name, Layer(layer_name))
        _add(layer, name, parameter, role_of(name, parameter))

    for index, entry in enumerate(entries):
        if isinstance(entry, Mapping):
            layer_name = str(entry.get("name", f"layer{index}"))
            if "params" not in entry:
                raise ValueError(f"params[{index}] is a group without an entry 'params'; it has {shown(list(entry))}.")
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
                ' normalization): name the tensor itself, such as "fc3.bias", or leave the pattern out.'
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
    chosen = _chosen(layers, names("regularize", patterns, '["conv*", "!fc3"]'), "regularize")
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
            there = ", ".join(layer.name for layer in layers)
            raise ValueError(f"{option}: the pattern {pattern!r} matches no layer and no parameter; layers: {there}.")
        chosen = chosen - matched if takes_out else chosen | matched
    return chosen

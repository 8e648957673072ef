"""What a tensor is in its network, and whether R acts on it by default (method §1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

#: Modules whose named tensors multiply features with features, whatever their shape.
_MULTIPLYING: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
_NORMALIZATIONS: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
#: Normalizations whose parameters have one dimension.
_FLAT: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
#: How the modules of torch call them; "_orig" is what pruning leaves.
_WEIGHT_NAMES = re.compile(r"weight(_orig)?|weight_(ih|hh|hr)(_l\d+)?(_reverse)?|([qkv]|in)_proj_weight")

#: Words of names, and what they say of a tensor.
_POSITIONS = {"pos", "position", "positions", "positional", "wpe"}
_STATES = {"token", "tokens", "prompt", "prompts", "latents", "queries", "state"}
_SCALES = {"gamma", "beta", "alpha", "scale", "shift", "gain", "offset"}
#: A class that is called NormLinear or PreNormBlock is no normalization.
_NO_NORMALIZATION = {"linear", "dense", "embedding", "attention", "block", "cell", "encoder", "decoder"}


@dataclass(frozen=True)
class Role:
    """What a tensor is in its network.

    Attributes:
        is_weight: Whether it multiplies features with features, so that R acts on it by default.
        reason: By what that was decided, in a few words.
        is_sure: Whether it was decided by a module of torch or a plain name, and not by the shape alone.
    """

    is_weight: bool
    reason: str
    is_sure: bool = True


def role_of(name: str, tensor: Tensor, module: nn.Module | None = None) -> Role:
    """Decides for one tensor.

    Args:
        name: Its full name, such as ``"features.0.weight"``.
        tensor: The tensor, any shape.
        module: The module that owns it, None if the network is not known.
    """
    path, _, short = name.rpartition(".")
    if is_lazy(tensor):
        return _of_lazy(name, short, module)
    if tensor.dim() < 2:
        return Role(False, "one dimension")
    owner, words = _words(path.rpartition(".")[2]), _words(short)
    if "bias" in words or owner[-1:] == ["bias"]:
        return Role(False, "bias")
    if module is not None and _is_normalization(module):
        return Role(False, "normalization")
    if _POSITIONS & {*owner, *words}:
        return Role(False, "position embedding")
    if isinstance(module, _MULTIPLYING) and _WEIGHT_NAMES.fullmatch(short):
        return Role(True, f"weight of {type(module).__name__}")
    if words[-1:] and words[-1] in _STATES:
        return Role(False, "token or state")
    if _SCALES & set(words):
        return Role(False, "scale or shift")
    return _by_shape(short, tensor, module)


def _of_lazy(name: str, short: str, module: nn.Module | None) -> Role:
    """Of a tensor whose shape is known only after the first forward; the modules of torch need none to tell."""
    kind = getattr(module, "cls_to_become", None) or type(module)
    if issubclass(kind, _MULTIPLYING) and _WEIGHT_NAMES.fullmatch(short):
        return Role(True, f"weight of {kind.__name__}")
    if issubclass(kind, (*_FLAT, *_MULTIPLYING)):
        return Role(False, "one dimension")
    raise TypeError(
        f"params: {name} has no shape yet, so it cannot be told what it is: run one batch through the network before"
        " the training, or before the optimizer is made."
    )


def _by_shape(short: str, tensor: Tensor, module: nn.Module | None) -> Role:
    if sum(size > 1 for size in tensor.shape) >= 2:
        return Role(True, "two dimensions or more", is_sure=False)
    others = () if module is None else (p for p in module.parameters(recurse=False) if p is not tensor)
    if tensor.dim() == 2 and (short == "weight" or short.isdecimal()) and all(p.shape != tensor.shape for p in others):
        # As that of a Linear with one output. A factor beside a summand of its shape is none.
        return Role(True, "matrix", is_sure=False)
    return Role(False, "one entry per feature", is_sure=False)


def _is_normalization(module: nn.Module) -> bool:
    if isinstance(module, _NORMALIZATIONS):
        return True
    if isinstance(module, _MULTIPLYING):
        return False
    # TorchScript calls all its modules alike, but remembers.
    words = _words(str(getattr(module, "original_name", type(module).__name__)))
    named = any(word.startswith("norm") or word.endswith("norm") for word in words)
    return named and not any(word.startswith("conv") or word in _NO_NORMALIZATION for word in words)


def _words(name: str) -> list[str]:
    """``"layer_scale"`` and ``"LayerScale2d"`` in words: ``["layer", "scale"]``."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name) if not word.isdigit()]


@dataclass(frozen=True, eq=False)
class Found:
    """One tensor of a network.

    Attributes:
        module: The module that owns it.
        path: That module's path.
        short: The tensor's name there.
        tensor: The tensor.
        role: What it is.
    """

    module: nn.Module
    path: str
    short: str
    tensor: Tensor
    role: Role

    @property
    def name(self) -> str:
        """The full name."""
        return f"{self.path}.{self.short}" if self.path else self.short


def tensors_of(network: nn.Module) -> Iterator[Found]:
    """All parameters of a network, those that are shared under each of their names."""
    modules = dict(network.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        for short, parameter in module.named_parameters(recurse=False):
            yield Found(module, path, short, parameter, _role_in(modules, path, short, parameter))


def _role_in(modules: dict[str, nn.Module], path: str, short: str, tensor: Tensor) -> Role:
    owner, separator, parametrized = path.rpartition("parametrizations.")
    if not separator:
        return role_of(f"{path}.{short}", tensor, modules[path])
    # torch.nn.utils.parametrize keeps "weight" as "parametrizations.weight.original".
    holder = modules.get(owner.rstrip("."))
    if short == "original0" and sum(size > 1 for size in tensor.shape) < 2:
        # The factor of weight_norm.
        return Role(False, "one entry per feature")
    return role_of(f"{owner}{parametrized}", tensor, holder)

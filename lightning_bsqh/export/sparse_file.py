"""Sparse networks as small safetensors files: what is not zero, and where it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_bsqh.export.finished_file import finished_file
from lightning_bsqh.export.sparse_coding import from_gaps, from_mask, gaps_length, is_nonzero, to_gaps, to_mask
from lightning_bsqh.export.tensor_names import check_name

FORMAT = "lightning-bsqh-sparse"
VERSION = 1

# What the two entries of a sparse tensor and its description add to the header of a file, about, beside their names.
_HEADER_BYTES = 140
# Those that every supported version of safetensors stores by themselves; the others go as bytes, and the description
# has their name.
_STORED = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
_OTHERS = {
    getattr(torch, name)
    for name in (
        *("uint16", "uint32", "uint64", "complex32", "complex64", "complex128"),
        *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
    if hasattr(torch, name)  # not all versions of torch have all
}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _STORED | _OTHERS}
_DECODE: dict[str, Callable[[Tensor, int], Tensor]] = {"mask": from_mask, "gaps": from_gaps}


def save_sparse(model: nn.Module | Mapping[str, Tensor], path: str | Path, *, overwrite: bool = False) -> int:
    """Writes parameters and buffers to a safetensors file, without their zeros.

    Each tensor is stored as it is, as values with a bitmask, or as values with the steps between them, whichever is
    smallest. The file is read back and compared to the bit before it gets its name. A negative zero becomes a zero.

    Args:
        model: A network, or a state_dict: tensors of any dtype, on any device, strided. Tensors that share their
            memory are stored once.
        path: The file to write.
        overwrite: Whether a file of that name may be replaced.

    Returns:
        The number of bytes of the file.

    Raises:
        TypeError: If ``model`` is neither, or an entry is no tensor, or has a dtype or layout that cannot be stored.
        ValueError: If a name could be taken for a path, or two names meet in the file.
        FileExistsError: If the file exists and ``overwrite`` is false.
        ModuleNotFoundError: If safetensors is not installed.
    """
    safetensors = _safetensors()
    state = _state(model)
    tensors, metadata = encode(state)
    with finished_file(path, overwrite) as temporary:
        safetensors.save_file(tensors, temporary, metadata=metadata)
        _check_same(state, load_sparse(temporary))
        return temporary.stat().st_size


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Reads what :func:`save_sparse` has written: a state_dict for ``module.load_state_dict``.

    Nothing in the file is executed, and no tensor can be larger than 255 elements per byte of the file.

    Args:
        path: The file.

    Returns:
        Dense tensors on the CPU by name, in the order of the state_dict.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, not of this format, or of a newer version.
        ModuleNotFoundError: If safetensors is not installed.
    """
    safetensors = _safetensors()
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            _check_version(metadata)
            # What safe_open gives is no mapping and cannot be iterated over.
            return decode({name: file.get_tensor(name) for name in file.keys()}, metadata)  # noqa: SIM118
    # MemoryError: what a damaged header asks for; RecursionError: JSON nested without end.
    except (ValueError, safetensors.SafetensorError, MemoryError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a sparse network: {error}.") from error


def sparse_bytes(model: nn.Module | Mapping[str, Tensor]) -> int:
    """How many bytes the file of :func:`save_sparse` would have; arguments and errors as there, nothing is written."""
    tensors, metadata = encode(_state(model))
    return len(_safetensors().save(tensors, metadata=metadata))


def _state(model: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    state = model.state_dict() if isinstance(model, nn.Module) else model
    if not isinstance(state, Mapping):
        raise TypeError(f"model must be an nn.Module or a state_dict, got {type(model).__name__}.")
    return state


def encode(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of the file for a state_dict; errors as in :func:`save_sparse`."""
    stored: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    names_by_memory: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        check_name(name)
        _check_tensor(name, tensor)
        first = names_by_memory.setdefault(_memory(name, tensor), name)
        parts, description = ({}, ["same", first]) if first != name else _encode_tensor(tensor.detach())
        described[name] = description
        for suffix, part in parts.items():
            if name + suffix in stored:
                raise ValueError(f"Two tensors would be stored as {name + suffix!r}: rename one of them.")
            stored[name + suffix] = part
    return stored, {"format": FORMAT, "version": str(VERSION), "tensors": json.dumps(described, separators=(",", ":"))}


def decode(stored: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The state_dict of the tensors and the metadata of a file.

    Raises:
        ValueError: If they do not fit together.
    """
    described = json.loads(metadata.get("tensors", ""))
    if not isinstance(described, dict):
        raise ValueError("its list of tensors is no table")
    left = dict(stored)
    state: dict[str, Tensor] = {}
    for name, description in described.items():
        check_name(name)
        try:
            state[name] = _decode_tensor(name, description, left, state)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"the tensor {name!r} is damaged ({error})") from error
    if left:
        raise ValueError(f"it holds {', '.join(map(repr, sorted(left)[:3]))}, which its list of tensors does not name")
    return state


def _encode_tensor(tensor: Tensor) -> tuple[dict[str, Tensor], Any]:
    nonzero = is_nonzero(tensor)
    count, size = int(nonzero.sum()), tensor.element_size()
    costs = {"dense": tensor.numel() * size}
    costs["mask"] = count * size + (tensor.numel() + 7) // 8 + _HEADER_BYTES
    costs["gaps"] = count * size + gaps_length(nonzero) + _HEADER_BYTES
    coding = min(costs, key=lambda kind: costs[kind])
    name = str(tensor.dtype).removeprefix("torch.")
    flat = _plain(tensor)
    if coding == "dense":
        # A copy: safetensors refuses views of one memory.
        parts, shape = {"": _storable(flat.clone())}, list(tensor.shape)
        return parts, 0 if flat.dtype in _STORED else ["dense", name, shape]
    values = _as_bytes(flat)[nonzero].flatten().view(tensor.dtype)
    code = to_mask(nonzero) if coding == "mask" else to_gaps(nonzero)
    return {":values": _storable(values), f":{coding}": code}, [coding, name, list(tensor.shape)]


def _decode_tensor(name: str, description: Any, left: dict[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
    if description == 0:
        return left.pop(name)
    if description[0] == "same":
        return state[description[1]]
    coding, dtype, shape = description
    size = _size(shape)
    if coding == "dense":
        return left.pop(name).view(_DTYPES[dtype]).reshape(shape)
    values = left.pop(f"{name}:values")
    values = values if values.dtype == _DTYPES[dtype] else values.view(_DTYPES[dtype])
    positions = _DECODE[coding](left.pop(f"{name}:{coding}"), size)
    if values.shape != (len(positions),):
        raise ValueError(f"{len(positions):,} values were expected, {values.numel():,} are there")
    flat = torch.zeros(size * values.element_size(), dtype=torch.uint8).view(values.dtype)
    _as_bytes(flat)[positions] = _as_bytes(values)
    return flat.reshape(shape)


def _size(shape: Any) -> int:
    whole = isinstance(shape, list) and all(type(length) is int and length >= 0 for length in shape)
    if not whole or math.prod(shape) >= 2**63:
        raise ValueError(f"{str(shape)[:80]} is no shape")
    return math.prod(shape)


def _as_bytes(flat: Tensor) -> Tensor:
    """One row of bytes per element, sharing the memory: works for every dtype."""
    return flat.flatten().view(torch.uint8).view(-1, flat.element_size())


def _plain(tensor: Tensor) -> Tensor:
    """The same on the CPU, with its elements one after the other."""
    return tensor.cpu().resolve_conj().resolve_neg().contiguous()


def _storable(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in _STORED else tensor.flatten().view(torch.uint8)


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name!r} is no tensor but {type(tensor).__name__}: leave it out of the state_dict.")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise TypeError(f"{name!r} must be a strided tensor with data, got {tensor.layout} on {tensor.device}.")
    if hasattr(tensor, "__tensor_flatten__"):
        # Such as those of torchao and DTensor: their data are those of other tensors.
        raise TypeError(f"{name!r} must be an ordinary tensor, got {type(tensor).__name__}: save the network before.")
    if tensor.dtype not in _STORED | _OTHERS:
        raise TypeError(f"{name!r} has the dtype {tensor.dtype}, which cannot be stored: convert it first.")


def _memory(name: str, tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are one and the same memory."""
    place = tensor.data_ptr() if tensor.numel() else name
    return place, str(tensor.device), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _check_version(metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its metadata do not name the format {FORMAT!r}; dense files are read by safetensors itself")
    version = metadata.get("version", "")
    if not (version.isascii() and version.isdigit() and 0 < len(version) < 10):
        raise ValueError(f"its version is {version[:20]!r}")
    if int(version) > VERSION:
        raise ValueError(f"it has the version {version}, this package reads up to {VERSION}: update lightning-bsqh")


def _check_same(state: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> None:
    """Raises RuntimeError unless what was read is what was to be written, to the bit."""
    for name, tensor in state.items():
        flat = _plain(tensor.detach()).clone()
        _as_bytes(flat)[~is_nonzero(flat)] = 0
        same = name in read and read[name].dtype == flat.dtype and read[name].shape == flat.shape
        if not (same and torch.equal(_as_bytes(flat), _as_bytes(read[name]))):
            raise RuntimeError(f"{name!r} was read back otherwise than it was written; no file has been left.")


class _Safetensors:
    """The functions of safetensors that are used here."""

    def __init__(self) -> None:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save, save_file

        self.SafetensorError, self.safe_open, self.save, self.save_file = SafetensorError, safe_open, save, save_file


def _safetensors() -> _Safetensors:
    try:
        return _Safetensors()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Sparse files need safetensors: pip install "lightning-bsqh[export]"') from error

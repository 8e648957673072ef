"""Copies of the tensors that a forward may write into (method §6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_bsqh.network.tree import version

#: Up to this number of elements a tensor is copied together with others.
SMALL = 4096


class TensorCopies:
    """Some tensors as they are now.

    Args:
        tensors: The tensors.
        layout: That of an earlier time, if it is known.
    """

    def __init__(self, tensors: Sequence[Tensor], layout: _Layout | None = None) -> None:
        if layout is None or layout.tensors is not tensors or not layout.is_current():
            layout = _Layout(tensors)
        self.layout = layout
        self._packed = [torch.cat(views) for views in layout.packs]
        self._single = [layout.tensors[i].detach().clone() for i in layout.single]

    @torch.no_grad()
    def restore(self) -> None:
        """Puts them back.

        Written past the counters of autograd: a graph that has seen these very values stays usable.
        """
        layout = self.layout
        if not layout.is_current():
            for tensor, value in self.items():
                _put(tensor, value)
            return
        for views, values in zip(layout.packs, self._packed, strict=True):
            if not _on_host(values) or not equal(torch.cat(views), values):
                torch._foreach_copy_(views, list(values.split([view.numel() for view in views])))
        for i, value in zip(layout.single, self._single, strict=True):
            if not _on_host(value) or not equal(layout.tensors[i], value):
                _put(layout.tensors[i], value)

    @torch.no_grad()
    def restore_unless(self, keep: Tensor) -> None:
        """Puts them back unless a boolean scalar of the device says otherwise; what has become another tensor stays."""
        layout = self.layout
        if layout.is_current():
            for views, values in zip(layout.packs, self._packed, strict=True):
                chosen = torch.where(keep, torch.cat(views), values)
                torch._foreach_copy_(views, list(chosen.split([view.numel() for view in views])))
            chosen_apart = [(layout.tensors[i], v) for i, v in zip(layout.single, self._single, strict=True)]
        else:
            chosen_apart = list(self.items())
        for tensor, value in chosen_apart:
            if tensor.layout == torch.strided and (tensor.shape, tensor.dtype) == (value.shape, value.dtype):
                tensor.data.copy_(torch.where(keep, tensor.data, value))

    def is_as(self, other: TensorCopies) -> bool:
        """Whether the same tensors had the same values, to the bit."""
        if self.layout is other.layout:
            pairs = zip(self._packed + self._single, other._packed + other._single, strict=True)
            return all(equal(a, b) for a, b in pairs)
        mine, others = list(self.items()), list(other.items())
        return len(mine) == len(others) and all(
            t is u and equal(v, w) for (t, v), (u, w) in zip(mine, others, strict=True)
        )

    def items(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Every tensor with its value."""
        layout = self.layout
        for places, views, values in zip(layout.places, layout.packs, self._packed, strict=True):
            parts = values.split([view.numel() for view in views])
            for i, part in zip(places, parts, strict=True):
                yield layout.tensors[i], part.view(layout.shapes[i])
        for i, value in zip(layout.single, self._single, strict=True):
            yield layout.tensors[i], value


class _Layout:
    """How some tensors lie in memory, so that many small ones are copied in one go."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.shapes = [t.shape for t in tensors]
        self.single: list[int] = []
        self.pointers = _pointers(tensors)
        groups: dict[Any, list[int]] = {}
        for i, tensor in enumerate(tensors):
            if tensor.dtype in _PACKED and is_plain(tensor) and tensor.numel() <= SMALL and tensor.is_contiguous():
                groups.setdefault((tensor.dtype, tensor.device), []).append(i)
            elif is_writable(tensor):
                self.single.append(i)
        self.places = list(groups.values())
        self.packs = [[tensors[i].data.view(-1) for i in places] for places in self.places]

    def is_current(self) -> bool:
        """Whether they lie there still."""
        return self.pointers == _pointers(self.tensors) and self.shapes == [t.shape for t in self.tensors]


class Watch:
    """Notices whether tensors that nobody has copied have been written into.

    By their counters, by where they lie, and, since ``tensor.data`` has a counter of its own, by some of their values.

    Args:
        tensors: The tensors.
        earlier: The same at an earlier time, whose views of some values are used again.
    """

    def __init__(self, tensors: Sequence[Tensor], earlier: Watch | None = None) -> None:
        self.tensors = tensors
        self._versions = list(map(version, tensors))
        self._pointers = _pointers(tensors)
        known = earlier is not None and earlier.tensors is tensors and earlier._pointers == self._pointers
        self._probes: list[Tensor] = earlier._probes if known and earlier is not None else list(map(_probe, tensors))
        self._values = _together(self._probes)

    def changed(self) -> list[Tensor]:
        """Those that have been written into since."""
        if not self.tensors:
            return []
        now = Watch(self.tensors, self)
        if (
            now._versions == self._versions
            and now._pointers == self._pointers
            and all(map(torch.equal, now._values, self._values))
        ):
            return []
        earlier = _apart(self._probes, self._values)
        return [
            t
            for i, t in enumerate(self.tensors)
            if now._versions[i] != self._versions[i]
            or now._pointers[i] != self._pointers[i]
            or not torch.equal(self._probes[i], earlier[i])
        ]


def _probe(tensor: Tensor) -> Tensor:
    """A view of some values; of none where nobody writes past the counter, or a look would make the host wait."""
    if tensor.device.type != "cpu" or tensor.grad_fn is not None or not tensor.numel():
        return torch.empty(0)
    if not is_plain(tensor) or not tensor.is_contiguous():
        return torch.empty(0)
    return tensor.data.view(-1)[:: max(1, tensor.numel() // 8)]


def _kinds(probes: Sequence[Tensor]) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for i, probe in enumerate(probes):
        groups.setdefault((probe.dtype, probe.device), []).append(i)
    return list(groups.values())


def _together(probes: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat([probes[i] for i in group]) for group in _kinds(probes)]


def _apart(probes: Sequence[Tensor], values: Sequence[Tensor]) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for group, together in zip(_kinds(probes), values, strict=True):
        found.update(zip(group, together.split([probes[i].numel() for i in group]), strict=True))
    return found


def is_plain(tensor: Tensor) -> bool:
    """Whether it is an ordinary dense tensor that can be read and written everywhere."""
    return (
        type(tensor) in _PLAIN
        and tensor.layout == torch.strided
        and not tensor.is_inference()
        and tensor.device.type != "meta"
        and not tensor.is_quantized
    )


#: Not the small kinds of floats, of which many operations know nothing.
_PACKED = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool}
    | {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
)
_PLAIN = frozenset({Tensor, torch.nn.Parameter, *([torch.nn.Buffer] if hasattr(torch.nn, "Buffer") else [])})


def is_writable(tensor: Tensor) -> bool:
    """Whether a forward could have written into ``tensor`` in place: not if its elements share memory."""
    if is_lazy(tensor) or tensor.is_nested or tensor.is_inference() or tensor.device.type == "meta":
        return False
    if tensor.layout != torch.strided:
        return True
    return not any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _on_host(tensor: Tensor) -> bool:
    """Whether a look at it costs nothing; elsewhere it would be a reason to wait for the device."""
    return tensor.device.type == "cpu"


def equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same to the bit; in doubt no."""
    if first.layout != torch.strided or second.layout != torch.strided:
        return False
    alike = first.shape == second.shape and first.dtype == second.dtype and first.device == second.device
    try:
        return alike and torch.equal(first, second)
    except RuntimeError:
        return False


def _pointers(tensors: Iterable[Tensor]) -> list[int]:
    return list(map(_pointer, tensors))


def _pointer(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (RuntimeError, ValueError):
        # Sparse, not yet made, or inside a torch.func transform.
        return 0


def _put(tensor: Tensor, value: Tensor) -> None:
    if tensor.shape == value.shape and tensor.dtype == value.dtype and tensor.layout == value.layout:
        # The data of a sparse tensor would be another one.
        (tensor.data if tensor.layout == torch.strided else tensor).copy_(value)
    else:
        # It has been resized, or has become another one.
        tensor.data = value.clone()

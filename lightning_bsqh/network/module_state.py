"""Everything that a forward may change in a module, to be put back after a trial (method §6)."""

from __future__ import annotations

import operator
import random
import sys
from typing import Any

import torch
from torch import Tensor, nn


class ModuleState:
    """Everything that a forward may change in a module, except its parameters.

    Buffers are copied. Of every submodule's plain attributes the assignments are remembered, with a
    shallow copy of lists, dicts and sets and the state of generators; of torchmetrics objects, which keep
    their state in attributes, also the tensors. Metrics inside plain lists and dicts are found, too.
    """

    def __init__(self, module: nn.Module) -> None:
        #: The module and all its parts; to walk through them is slow, so it is done once.
        self.modules = list(module.modules())
        self._capture()

    def again(self) -> ModuleState:
        """The same of the same modules as they are now."""
        state = object.__new__(ModuleState)
        state.modules = self.modules
        state._capture()
        return state

    def _capture(self) -> None:
        buffers = {id(b): b for child in self.modules for b in vars(child)["_buffers"].values() if b is not None}
        self._buffers = [(b, b.detach().clone()) for b in buffers.values() if _writable(b)]
        self._attributes: list[_Attributes] = []
        seen: set[int] = set()
        for child in self.modules:
            self._remember(child, seen)

    def _remember(self, child: nn.Module, seen: set[int]) -> None:
        if id(child) in seen:
            return
        seen.add(id(child))
        attributes = _Attributes(child, copy_tensors=_is_metric(child))
        self._attributes.append(attributes)
        for metric in attributes.metrics:
            for part in metric.modules():
                self._remember(part, seen)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the buffers and attributes back."""
        for buffer, value in self._buffers:
            buffer.copy_(value)
        for attributes in self._attributes:
            attributes.restore()

    @property
    def has_metrics(self) -> bool:
        """Whether there are torchmetrics objects among the modules."""
        return any(attributes.is_metric for attributes in self._attributes)

    @torch.no_grad()
    def restore_metrics(self) -> None:
        """Puts back the state of torchmetrics objects only."""
        for attributes in self._attributes:
            if attributes.is_metric:
                attributes.restore()

    def same_as(self, other: ModuleState, metrics: bool = True) -> bool:
        """Whether the modules were in the same state both times, as far as it is remembered here.

        In doubt, for instance about an object of a kind that cannot be compared, the answer is no.

        Args:
            other: The other time.
            metrics: Whether the state of torchmetrics objects counts.
        """
        if len(self._buffers) != len(other._buffers) or len(self._attributes) != len(other._attributes):
            return False
        buffers = zip(self._buffers, other._buffers, strict=True)
        return all(b is c and same(v, w) for (b, v), (c, w) in buffers) and all(
            (mine.is_metric and not metrics) or mine.same_as(others)
            for mine, others in zip(self._attributes, other._attributes, strict=True)
        )


class _Attributes:
    """The instance attributes of one module, to be put back. Made for every module at every trial, so kept quick."""

    def __init__(self, owner: nn.Module, copy_tensors: bool) -> None:
        self._owner = owner
        self.is_metric = copy_tensors
        self._values = vars(owner).copy()
        self._contents: list[tuple[Any, Any]] = []
        #: Metrics that the module keeps in plain containers, where nn.Module does not see them.
        self.metrics: list[nn.Module] = []
        for name, value in self._values.items():
            kind = type(value)
            if kind in _IMMUTABLE or name in _BOOKKEEPING:
                continue
            if kind in _CONTAINERS:
                self._contents.append((value, value.copy()))
                self.metrics += [m for m in (value.values() if kind is dict else value) if _is_metric(m)]
            elif kind is tuple:
                self.metrics += [m for m in value if _is_metric(m)]
            elif isinstance(value, Tensor):
                if copy_tensors and _writable(value):
                    self._contents.append((value, value.detach().clone()))
            elif _is_generator(value):
                self._contents.append((value, _generator_state(value)))

    def restore(self) -> None:
        current = vars(self._owner)
        if current.keys() != self._values.keys() or not _identical(current, self._values):
            for name in current.keys() - self._values.keys():
                del current[name]
            current.update(self._values)
        for value, content in self._contents:
            _refill(value, content)

    def same_as(self, other: _Attributes) -> bool:
        return self._owner is other._owner and same(self._held(), other._held())

    def _held(self) -> dict[str, Any]:
        """The attributes with what was in them at the time, by name."""
        contents = {id(value): content for value, content in self._contents}
        return {name: contents.get(id(value), value) for name, value in self._values.items()}


def _refill(value: Any, content: Any) -> None:
    """Puts the contents of one mutable object back."""
    if isinstance(value, Tensor):
        value.copy_(content)
    elif isinstance(value, list):
        value[:] = content
    elif isinstance(value, dict):
        # Not touched if the same: compiled code watches the dicts of modules.
        if value.keys() != content.keys() or not _identical(value, content):
            value.clear()
            value.update(content)
    elif isinstance(value, set):
        value.clear()
        value.update(content)
    else:
        _set_generator_state(value, content)


def _identical(first: dict[Any, Any], second: dict[Any, Any]) -> bool:
    """Whether two dicts of the same keys hold the very same objects in the same order; == would compare tensors."""
    return all(map(operator.is_, first.values(), second.values()))


def same(first: Any, second: Any) -> bool:
    """Whether two nests of tensors and plain values are equal, to the bit; objects of other kinds only if identical."""
    if first is second:
        return True
    if isinstance(first, Tensor):
        alike = isinstance(second, Tensor) and first.dtype == second.dtype and first.device == second.device
        return alike and torch.equal(first, second)
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return isinstance(first, (int, float, str, bytes, set, torch.device)) and bool(first == second)


#: What a bare module keeps for itself and no forward assigns to, except its buffers.
_BOOKKEEPING = frozenset(vars(nn.Module())) - {"_buffers"}
_IMMUTABLE = frozenset({int, float, bool, str, type(None)})
_CONTAINERS = frozenset({list, dict, set})


def _is_metric(value: object) -> bool:
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is None or not isinstance(value, nn.Module):
        return False
    return isinstance(value, (torchmetrics.Metric, torchmetrics.MetricCollection))


def _is_generator(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    kinds = (torch.Generator, random.Random, *((numpy.random.Generator,) if numpy is not None else ()))
    return isinstance(value, kinds)


def _generator_state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return generator.getstate() if isinstance(generator, random.Random) else generator.bit_generator.state


def _set_generator_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state


def _writable(tensor: Tensor) -> bool:
    """Whether a forward could have written into ``tensor`` in place: not if its elements share memory."""
    return not any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))

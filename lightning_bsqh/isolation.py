"""What a trial forward sweep may not do (design §6): leave a trace, or draw other random numbers."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RandomState:
    """The state of every global generator that a forward sweep may draw from."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...] | None
    cpu: Tensor
    devices: dict[str, Tensor]

    @classmethod
    def capture(cls, devices: Iterable[torch.device] = ()) -> RandomState:
        """Reads the generators of Python, NumPy (if it is loaded), the CPU and the given devices."""
        numpy = sys.modules.get("numpy")
        states = {}
        for device in devices:
            if device.type == "cuda":
                states[str(device)] = torch.cuda.get_rng_state(device)
            elif device.type == "mps":
                states[str(device)] = torch.mps.get_rng_state()
        return cls(
            random.getstate(),
            numpy.random.get_state() if numpy is not None else None,
            torch.get_rng_state(),
            states,
        )

    def restore(self) -> None:
        """Puts every captured generator back."""
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        for name, state in self.devices.items():
            if name.startswith("cuda"):
                torch.cuda.set_rng_state(state, torch.device(name))
            else:
                torch.mps.set_rng_state(state)

    def state_dict(self) -> dict[str, Any]:
        """The same in plain types and tensors, so that a checkpoint of it loads with ``weights_only=True``."""
        state: dict[str, Any] = {"python": self.python, "cpu": self.cpu, "devices": dict(self.devices)}
        if self.numpy is not None:
            kind, keys, *rest = self.numpy
            state["numpy"] = (kind, torch.from_numpy(keys.astype("int64")), *rest)
        return state

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RandomState:
        """Takes back what :meth:`state_dict` gave."""
        numpy = None
        if "numpy" in state and "numpy" in sys.modules:
            kind, keys, *rest = state["numpy"]
            numpy = (kind, keys.numpy().astype("uint32"), *rest)
        version, internal, gauss = state["python"]
        devices = {name: value.cpu() for name, value in state["devices"].items()}
        return cls((version, tuple(internal), gauss), numpy, state["cpu"].cpu(), devices)


class ModuleState:
    """Everything that a forward may change in a module, except its parameters.

    Buffers are copied. Of every submodule's plain attributes the assignments are remembered, with a
    shallow copy of lists, dicts and sets and the state of generators; of torchmetrics objects, which keep
    their state in attributes, also the tensors. Metrics inside plain lists and dicts are found, too.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers = [(b, b.detach().clone()) for b in module.buffers() if _writable(b)]
        self._attributes: list[_Attributes] = []
        seen: set[int] = set()
        for child in module.modules():
            self._remember(child, seen)

    def _remember(self, child: nn.Module, seen: set[int]) -> None:
        if id(child) in seen:
            return
        seen.add(id(child))
        self._attributes.append(_Attributes(child, copy_tensors=_is_metric(child)))
        for value in list(vars(child).values()):
            members = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
            for member in members:
                if _is_metric(member):
                    for metric in member.modules():
                        self._remember(metric, seen)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the buffers and attributes back."""
        for buffer, value in self._buffers:
            buffer.copy_(value)
        for attributes in self._attributes:
            attributes.restore()


def _is_metric(value: object) -> bool:
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is None:
        return False
    return isinstance(value, (torchmetrics.Metric, torchmetrics.MetricCollection))


def _is_generator(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    kinds = (torch.Generator, random.Random) + ((numpy.random.Generator,) if numpy is not None else ())
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


def _same(value: Any, content: Any) -> bool:
    """Whether a container still holds the very same objects; == would compare tensors elementwise."""
    if len(value) != len(content):
        return False
    if isinstance(value, list):
        return all(a is b for a, b in zip(value, content, strict=True))
    if isinstance(value, dict):
        return all(a is b for a, b in zip(value, content, strict=True)) and all(
            a is b for a, b in zip(value.values(), content.values(), strict=True)
        )
    return bool(value == content)


class _Attributes:
    """The instance attributes of one object, to be put back."""

    def __init__(self, owner: object, copy_tensors: bool) -> None:
        self._owner = owner
        self._values = dict(vars(owner))
        self._contents: list[tuple[Any, Any]] = []
        for value in self._values.values():
            if type(value) in (list, dict, set):
                self._contents.append((value, value.copy()))
            elif _is_generator(value):
                self._contents.append((value, _generator_state(value)))
            elif copy_tensors and isinstance(value, Tensor) and _writable(value):
                self._contents.append((value, value.detach().clone()))

    def restore(self) -> None:
        current = vars(self._owner)
        for name in current.keys() - self._values.keys():
            del current[name]
        for name, value in self._values.items():
            if name not in current or current[name] is not value:
                current[name] = value
        for value, content in self._contents:
            if _is_generator(value):
                _set_generator_state(value, content)
            elif isinstance(value, Tensor):
                value.copy_(content)
            elif _same(value, content):
                continue
            elif isinstance(value, list):
                value[:] = content
            else:
                value.clear()
                value.update(content)


@contextmanager
def without_trace(
    module: nn.Module | None, start: RandomState, before: ModuleState | None, devices: Iterable[torch.device]
) -> Iterator[None]:
    """Runs a trial from where the forward sweep began and then undoes what it changed.

    Args:
        module: The network whose buffers and attributes are put back, None if unknown.
        start: The generators when the forward sweep began, so that the trial draws the same numbers.
        before: The module when the forward sweep began, so that J_B(û) and J_B(w) are the same function even if
            training_step counts its calls or fills a queue; None if unknown.
        devices: Devices whose generators the trial may use.
    """
    state = ModuleState(module) if module is not None else None
    after = RandomState.capture(devices)
    start.restore()
    if before is not None:
        before.restore()
    try:
        yield
    finally:
        after.restore()
        if state is not None:
            state.restore()

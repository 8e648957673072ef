"""The state of the random number generators that a forward sweep may draw from (method §6)."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The state of every global generator that a forward sweep may draw from."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...] | None
    cpu: torch.Generator
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
            torch.default_generator.clone_state(),
            states,
        )

    def restore(self, current: RandomState | None = None) -> None:
        """Puts every captured generator back.

        Args:
            current: The state that the generators have, if it is known: what is the same is left alone.
        """
        if current is None or current.python != self.python:
            random.setstate(self.python)
        # NumPy's takes longer to write than all the others together.
        if self.numpy is not None and (current is None or not _same_numpy(self.numpy, current.numpy)):
            sys.modules["numpy"].random.set_state(self.numpy)
        torch.set_rng_state(self.cpu.get_state())
        for name, state in self.devices.items():
            if name.startswith("cuda"):
                torch.cuda.set_rng_state(state, torch.device(name))
            else:
                torch.mps.set_rng_state(state)

    def same_as(self, other: RandomState) -> bool:
        """Whether no generator has drawn a number between the two."""
        numpy = self.numpy is None or _same_numpy(self.numpy, other.numpy)
        plain = numpy and self.python == other.python and self.devices.keys() == other.devices.keys()
        return (
            plain
            and torch.equal(self.cpu.get_state(), other.cpu.get_state())
            and all(torch.equal(state, other.devices[name]) for name, state in self.devices.items())
        )

    def state_dict(self) -> dict[str, Any]:
        """The same in plain types and tensors, so that a checkpoint of it loads with ``weights_only=True``."""
        state: dict[str, Any] = {"python": self.python, "cpu": self.cpu.get_state(), "devices": dict(self.devices)}
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
        cpu = torch.Generator()
        cpu.set_state(state["cpu"].cpu())
        return cls((version, tuple(internal), gauss), numpy, cpu, devices)


def _same_numpy(first: tuple[Any, ...], second: tuple[Any, ...] | None) -> bool:
    """Whether two states of NumPy's global generator are equal; the array of keys is the second entry."""
    if second is None or first[0] != second[0] or first[2:] != second[2:]:
        return False
    return bool((first[1] == second[1]).all())

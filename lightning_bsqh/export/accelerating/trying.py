"""Tries other kernels layer by layer, and keeps what is faster on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from lightning_bsqh._validation import flag, number
from lightning_bsqh.export.accelerating.eight_bits import (
    INT8_KERNELS,
    INT8_TOLERANCE,
    check_torchao,
    int8_candidates,
)
from lightning_bsqh.export.accelerating.kernels import candidates
from lightning_bsqh.export.accelerating.whole import Step, rewrite
from lightning_bsqh.export.comparison import as_inputs, difference, evaluating, outputs_of, tolerance
from lightning_bsqh.export.measuring import latencies

# A kernel must be so many times faster, twice in a row: less is what a machine gives from run to run.
_GAIN = 1.1


@dataclass(frozen=True)
class Tried:
    """One layer.

    Attributes:
        layer: Its name.
        milliseconds: Durations by kernel; ``dense`` is the layer as it was.
        chosen: The kernel that is used.
        failed: Kernels that could not be used, by name with the reason.
        differences: By how much outputs in int8 are off, as a share of the largest output, by kernel.
    """

    layer: str
    milliseconds: dict[str, float]
    chosen: str
    failed: dict[str, str]
    differences: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        times = ", ".join(f"{kernel} {value:.4f} ms{self._off(kernel)}" for kernel, value in self.milliseconds.items())
        reasons = "".join(f"; {kernel}: {reason}" for kernel, reason in self.failed.items())
        return f"{self.layer}: {times} → {self.chosen}{reasons}"

    def _off(self, kernel: str) -> str:
        return f" (off by {self.differences[kernel]:.1%})" if kernel in self.differences else ""


@dataclass(frozen=True)
class Acceleration:
    """What :func:`accelerate` gives.

    Attributes:
        network: The network to use, in evaluation mode: a copy with the faster layers, or without any.
        layers: What was tried.
        steps: What was tried on the network as a whole.
        milliseconds: Duration of a forward before and after.
        difference: Largest difference of the outputs on the example inputs, as a share of the largest output.
        unused: Why nothing of what was faster by itself is used; empty if it is, or if nothing was.
    """

    network: nn.Module
    layers: list[Tried]
    steps: list[Step]
    milliseconds: tuple[float, float]
    difference: float
    unused: str = ""

    def __str__(self) -> str:
        before, after = self.milliseconds
        whole = f"whole network: {before:.4f} → {after:.4f} ms ({before / after:.2f} x)"
        whole += f", nothing is used: {self.unused}" if self.unused else f", outputs off by {self.difference:.1e}"
        return "\n".join([*map(str, self.steps), *map(str, self.layers), whole])


def accelerate(model: nn.Module, example_inputs: Any, seconds: float = 0.3, *, int8: bool = False) -> Acceleration:
    """Replaces layers with many zeros by what is faster for them on this machine, and only by that.

    Linear layers are tried as CSR products, convolutions as CSR products with the windows of their input, both without
    their zero rows and columns; on CUDA, layers of which two of every four weights are zero (``NM(2, 4)``) on sparse
    tensor cores. A kernel is used if it gives the same and is at least 1.1 times faster than the layer, twice.

    Before that, in what ``shrink`` gives, BatchNorm goes into the layer before it, images are put channels last, and
    sums and ReLU write in place, each where it is faster, twice. The whole is used if it is faster than the network
    was. Most of a gain comes from ``shrink``: use it first.

    Args:
        model: A network; it is copied.
        example_inputs: The argument of its forward, or a tuple of several, of the batch size that it shall be fast for.
        seconds: How long to time each layer and step, > 0.
        int8: Whether to try linear layers in int8, too, by torchao, with and without ``torch.compile``. Outputs then
            change by more than rounding (often by 1 %; a kernel that is off by more than 10 % is not used), so check
            the accuracy. int8 must be 1.1 times faster than what gives the same, too.

    Raises:
        TypeError: If ``int8`` is neither True nor False.
        ValueError: If the model does not run on the inputs, or an option is out of its range.
        ModuleNotFoundError: If ``int8`` is true and torchao is not installed.
        RuntimeError: If ``int8`` is true and torchao does not fit torch.
    """
    number("seconds", seconds, low=0.0, open_low=True)
    if flag("int8", int8):
        check_torchao()
    inputs = as_inputs(example_inputs)
    expected = outputs_of(model, inputs)
    plain = copy.deepcopy(model).eval()
    rewritten, steps = rewrite(plain, inputs, seconds)
    fast = copy.deepcopy(rewritten)
    kernels = _with_int8 if int8 else candidates
    given = _layer_inputs(fast, inputs, kernels)
    tried = [_try(fast, name, arguments, kernels, seconds) for name, arguments in given.items()]
    before, after = latencies([plain, fast], inputs, seconds)
    gap = difference(expected, outputs_of(fast, inputs))
    unused = _objection(tried, before, after, gap, tolerance(expected))
    changed = any(step.used for step in steps) or any(layer.chosen != "dense" for layer in tried)
    if changed and not unused:
        return Acceleration(fast, tried, steps, (before, after), gap)
    steps = [replace(step, used=False) for step in steps]
    tried = [replace(layer, chosen="dense") for layer in tried]
    gap = difference(expected, outputs_of(plain, inputs))
    return Acceleration(plain, tried, steps, (before, before), gap, unused if changed else "")


_Candidates = Callable[[nn.Module], dict[str, Callable[[Any], nn.Module]]]


def _with_int8(layer: nn.Module) -> dict[str, Callable[[Any], nn.Module]]:
    return {**candidates(layer), **int8_candidates(layer)}


def _objection(tried: list[Tried], before: float, after: float, gap: float, rounding: float) -> str:
    """Why a network as a whole cannot be used; empty if it can."""
    allowed = INT8_TOLERANCE if any(layer.chosen in INT8_KERNELS for layer in tried) else rounding
    if gap > allowed:
        return f"its outputs differ by {gap:.1e}, {allowed:.0e} is allowed"
    return "" if after < before else f"as a whole it took {after:.4f} ms"


def _layer_inputs(model: nn.Module, inputs: tuple[Any, ...], kernels: _Candidates) -> dict[str, Tensor]:
    """What each layer that could be replaced is given first, by name."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, layer in model.named_modules():
        if name and kernels(layer) and not (layer._forward_hooks or layer._forward_pre_hooks):

            def note(_: nn.Module, arguments: tuple[Any, ...], name: str = name) -> None:
                seen.setdefault(name, arguments[0].clone())

            handles.append(layer.register_forward_pre_hook(note))
    try:
        outputs_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _try(model: nn.Module, name: str, given: Tensor, kernels: _Candidates, seconds: float) -> Tried:
    """Puts the fastest kernel into the place of a layer."""
    owner, _, last = name.rpartition(".")
    layer = model.get_submodule(name)
    working, failed, differences = _working(layer, given, kernels(layer))
    times = dict(zip(working, latencies(list(working.values()), (given,), seconds), strict=True))
    for chosen, rival in _rivals(times):
        if _is_faster(working[rival], working[chosen], given, seconds, times[rival] / times[chosen]):
            setattr(model.get_submodule(owner), last, working[chosen])
            return Tried(name, times, chosen, failed, differences)
    return Tried(name, times, "dense", failed, differences)


def _working(
    layer: nn.Module, given: Tensor, kernels: dict[str, Callable[[Any], nn.Module]]
) -> tuple[dict[str, nn.Module], dict[str, str], dict[str, float]]:
    """The kernels that give the same, or nearly so in int8; why others cannot be used; by how much int8 is off."""
    working: dict[str, nn.Module] = {"dense": layer}
    failed: dict[str, str] = {}
    differences: dict[str, float] = {}
    expected = outputs_of(layer, (given,))
    for kind, make in kernels.items():
        try:
            kernel = make(layer).eval()
            gap = difference(expected, outputs_of(kernel, (given,)))
        except (RuntimeError, ValueError) as error:
            failed[kind] = str(error).splitlines()[0]
            continue
        if gap > (INT8_TOLERANCE if kind in INT8_KERNELS else tolerance(expected)):
            failed[kind] = f"its outputs differ by {gap:.1e}"
            continue
        working[kind] = kernel
        if kind in INT8_KERNELS:
            differences[kind] = gap
    return working, failed, differences


def _rivals(times: dict[str, float]) -> list[tuple[str, str]]:
    """Which kernel may be used, and what it must be faster than: int8 than all that gives the same, that than dense."""
    exact = min((kind for kind in times if kind not in INT8_KERNELS), key=lambda kind: times[kind])
    rounded = [kind for kind in times if kind in INT8_KERNELS]
    found = [(min(rounded, key=lambda kind: times[kind]), exact)] if rounded else []
    return found + ([(exact, "dense")] if exact != "dense" else [])


def _is_faster(rival: nn.Module, kernel: nn.Module, given: Tensor, seconds: float, gain: float) -> bool:
    """Whether a kernel was so much faster, and is so again."""
    if gain < _GAIN:
        return False
    with evaluating(nn.ModuleList([rival, kernel])):
        before, after = latencies([rival, kernel], (given,), seconds)
    return before / after >= _GAIN

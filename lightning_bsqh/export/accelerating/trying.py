"""Tries other kernels layer by layer, and keeps what is faster on this machine."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lightning_bsqh._validation import number
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
    """

    layer: str
    milliseconds: dict[str, float]
    chosen: str
    failed: dict[str, str]

    def __str__(self) -> str:
        times = ", ".join(f"{kernel} {value:.4f} ms" for kernel, value in self.milliseconds.items())
        reasons = "".join(f"; {kernel}: {reason}" for kernel, reason in self.failed.items())
        return f"{self.layer}: {times} → {self.chosen}{reasons}"


@dataclass(frozen=True)
class Acceleration:
    """What :func:`accelerate` gives.

    Attributes:
        network: The network to use, in evaluation mode: a copy with the faster layers, or without any.
        layers: What was tried.
        steps: What was tried on the network as a whole.
        milliseconds: Duration of a forward before and after.
        difference: Largest difference of the outputs on the example inputs, as a share of the largest output.
    """

    network: nn.Module
    layers: list[Tried]
    steps: list[Step]
    milliseconds: tuple[float, float]
    difference: float

    def __str__(self) -> str:
        before, after = self.milliseconds
        whole = f"whole network: {before:.4f} → {after:.4f} ms ({before / after:.2f} x)"
        return "\n".join([*map(str, self.steps), *map(str, self.layers), whole])


def accelerate(model: nn.Module, example_inputs: Any, seconds: float = 0.3) -> Acceleration:
    """Replaces layers with many zeros by what is faster for them on this machine, and only by that.

    Linear layers are tried as CSR products, convolutions as CSR products with the windows of their input, both without
    their zero rows and columns; on CUDA, linear layers of which two of every four weights are zero (``NM(2, 4)``) on
    sparse tensor cores. A kernel is used if it gives the same and is at least 1.1 times faster than the layer, twice.

    Before that, in what ``shrink`` gives, BatchNorm goes into the layer before it, images are put channels last, and
    sums and ReLU write in place, each where it is faster, twice. The whole is used if it is faster than the network
    was. Most of a gain comes from ``shrink``: use it first.

    Args:
        model: A network; it is copied.
        example_inputs: The argument of its forward, or a tuple of several, of the batch size that it shall be fast for.
        seconds: How long to time each layer and step, > 0.

    Raises:
        ValueError: If the model does not run on the inputs, or an option is out of its range.
    """
    number("seconds", seconds, low=0.0, open_low=True)
    inputs = as_inputs(example_inputs)
    expected = outputs_of(model, inputs)
    plain = copy.deepcopy(model).eval()
    rewritten, steps = rewrite(plain, inputs, seconds)
    fast = copy.deepcopy(rewritten)
    tried = [_try(fast, name, arguments, seconds) for name, arguments in _layer_inputs(fast, inputs).items()]
    before, after = latencies([plain, fast], inputs, seconds)
    gap = difference(expected, outputs_of(fast, inputs))
    changed = any(step.used for step in steps) or any(layer.chosen != "dense" for layer in tried)
    if changed and after < before and gap <= tolerance(expected):
        return Acceleration(fast, tried, steps, (before, after), gap)
    unused = [replace(step, used=False) for step in steps]
    kept = [replace(layer, chosen="dense") for layer in tried]
    return Acceleration(plain, kept, unused, (before, before), difference(expected, outputs_of(plain, inputs)))


def _layer_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """What each layer that could be replaced is given first, by name."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, layer in model.named_modules():
        if name and candidates(layer) and not (layer._forward_hooks or layer._forward_pre_hooks):

            def note(_: nn.Module, arguments: tuple[Any, ...], name: str = name) -> None:
                seen.setdefault(name, arguments[0].clone())

            handles.append(layer.register_forward_pre_hook(note))
    try:
        outputs_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _try(model: nn.Module, name: str, given: Tensor, seconds: float) -> Tried:
    """Puts the fastest kernel into the place of a layer."""
    owner, _, last = name.rpartition(".")
    layer = model.get_submodule(name)
    kernels: dict[str, nn.Module] = {"dense": layer}
    failed: dict[str, str] = {}
    expected = outputs_of(layer, (given,))
    for kind, make in candidates(layer).items():
        try:
            kernel = make(layer).eval()
            gap = difference(expected, outputs_of(kernel, (given,)))
        except (RuntimeError, ValueError) as error:
            failed[kind] = str(error).splitlines()[0]
            continue
        if gap <= tolerance(expected):
            kernels[kind] = kernel
        else:
            failed[kind] = f"its outputs differ by {gap:.1e}"
    times = dict(zip(kernels, latencies(list(kernels.values()), (given,), seconds), strict=True))
    chosen = min(times, key=lambda kind: times[kind])
    if chosen != "dense" and _is_faster(layer, kernels[chosen], given, seconds, times["dense"] / times[chosen]):
        setattr(model.get_submodule(owner), last, kernels[chosen])
        return Tried(name, times, chosen, failed)
    return Tried(name, times, "dense", failed)


def _is_faster(layer: nn.Module, kernel: nn.Module, given: Tensor, seconds: float, gain: float) -> bool:
    """Whether it was so much faster, and is so again."""
    if gain < _GAIN:
        return False
    with evaluating(nn.ModuleList([layer, kernel])):
        dense, other = latencies([layer, kernel], (given,), seconds)
    return dense / other >= _GAIN

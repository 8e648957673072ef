"""States and adjoints at the boundaries of layers, and Σ_s⟨p_{l+1}, λ_l(x_l, u)⟩ from the layer alone (method §3)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_bsqh.network.layers import Layer
from lightning_bsqh.network.module_state import Memory
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.tree import copied, describe, floating, is_floating, is_nest, mapped
from lightning_bsqh.network.without_trace import without_trace


class Call:
    """One call of a layer's module in the forward sweep.

    Attributes:
        module: The module that was called.
        args: Its positional inputs x_l, detached from the graph.
        kwargs: Its named inputs, likewise.
        gradients: ∂L/∂x_{l+1} = −p_{l+1} for every floating tensor of the output in their order; None where the
            loss does not depend on it.
    """

    def __init__(self, memory: Memory, args: Any, kwargs: Any, devices: Iterable[torch.device]) -> None:
        self.module = memory.module
        self.args = args
        self.kwargs = kwargs
        self.gradients: list[Tensor | None] = []
        self._devices = list(devices)
        self._autocast = _autocast_of({"cpu", *(device.type for device in self._devices)})
        # A layer that draws numbers or counts its calls is the same function only from where it began.
        self._random = RandomState.capture(self._devices)
        self._state = memory.take()

    def alignment(self) -> float:
        """Σ_s⟨p_{l+1}, λ_l(x_l, u)⟩ at the module's present parameters u, summed in double precision."""
        with torch.no_grad(), self._as_it_was():
            return -math.fsum(
                float(torch.dot(g.flatten().double(), out.flatten().double())) for g, out in self._pairs()
            )

    def gradients_of(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """−∂_u Σ_s⟨p_{l+1}, λ_l(x_l, u)⟩ at the module's present parameters, zeros where it does not depend on one."""
        with torch.enable_grad(), self._as_it_was():
            terms = [(out * g).sum() for g, out in self._pairs() if out.requires_grad]
            if not terms:
                return [torch.zeros_like(p) for p in parameters]
            # Not those that have been frozen since.
            trained = [p for p in parameters if p.requires_grad]
            found = torch.autograd.grad(torch.stack(terms).sum(), trained, allow_unused=True)
        known = {id(p): g for p, g in zip(trained, found, strict=True) if g is not None}
        return [known[id(p)] if id(p) in known else torch.zeros_like(p) for p in parameters]

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        with without_trace(self.module, self._random, self._state, self._devices), ExitStack() as stack:
            for kind, dtype, enabled in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled=enabled))
            yield

    def is_affine_in(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the module's output is affine in these parameters on the recorded input, as far as can be seen.

        Three points on a line, as far apart as the parameters are large: the outputs have to lie on a line, too. What
        bends there by no more than rounding is affine for all that an iteration will do.

        Args:
            parameters: The module's own; they hold the same afterward.
        """
        generator = torch.Generator().manual_seed(0)
        held = [p.detach().clone() for p in parameters]
        steps = [_random_like(p, generator) for p in held]
        outputs = []
        with torch.no_grad():
            try:
                for factor in (0.0, 1.0, 2.0):
                    for p, value, step in zip(parameters, held, steps, strict=True):
                        p.copy_(value + factor * step)
                    with self._as_it_was():
                        outputs.append([out.detach().clone() for out in self._outputs()])
            finally:
                for p, value in zip(parameters, held, strict=True):
                    p.copy_(value)
        return all(_on_a_line(*points) for points in zip(*outputs, strict=True))

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Runs the module; gives −p_{l+1} and x_{l+1} for all parts of the output that the loss depends on."""
        outputs = self._outputs()
        return [(g, out) for g, out in zip(self.gradients, outputs, strict=True) if g is not None]

    def _outputs(self) -> list[Tensor]:
        return floating(self.module(*self.args, **self.kwargs))


def _autocast_of(kinds: Iterable[str]) -> list[tuple[str, torch.dtype, bool]]:
    """The state of autocast by kind of device."""
    known = [kind for kind in kinds if kind in ("cpu", "cuda", "xpu")]
    return [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in known]


def _random_like(values: Tensor, generator: torch.Generator) -> Tensor:
    size = values.abs().mean().clamp(min=1e-2)
    return torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values) * size


def _on_a_line(first: Tensor, middle: Tensor, last: Tensor) -> bool:
    size = torch.maximum(first.abs(), last.abs()).max() if first.numel() else first.new_zeros(())
    bend = (first - 2.0 * middle + last).abs().max() if first.numel() else size
    return bool(bend <= 64.0 * torch.finfo(first.dtype).eps * size)


@dataclasses.dataclass
class Recorded:
    """What the forward and the adjoint sweep leave of one call.

    Attributes:
        module: The module that was called.
        call: The call with its inputs, None if they were not asked for.
        gradients: ∂L/∂x_{l+1} for every floating tensor of the output, None where the loss does not depend on it.
        part: Number of the micro-batch.
    """

    module: nn.Module
    call: Call | None
    part: int = 0
    gradients: list[Tensor | None] = dataclasses.field(default_factory=list)

    @property
    def has_adjoint(self) -> bool:
        """Whether the loss depends on what this call returned."""
        return any(g is not None for g in self.gradients)

    def again(self) -> Call:
        """The call with its inputs and the adjoint that came back."""
        assert self.call is not None, "the inputs were not recorded"
        self.call.gradients = self.gradients
        return self.call


class Boundaries:
    """Records what goes into a layer's module and what adjoint comes back to what it returned, call by call.

    Args:
        layers: The layers to record.
        devices: Where the network lives.
        inputs: For which layers to keep the inputs, too, which costs their memory; None for all.
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        devices: Iterable[torch.device],
        inputs: Callable[[Layer], bool] | None = None,
    ) -> None:
        self._layers = [layer for layer in layers if layer.can_be_watched]
        self._inputs = inputs or (lambda layer: True)
        self._devices = sorted(set(devices), key=str)
        self._memories: dict[int, Memory] = {}
        self._calls: dict[int, list[Recorded]] = {}
        self._unusable: set[int] = set()
        self._part = 0
        self._shares: list[float] = []
        self._handles: list[Any] = []
        #: What a module has to run in, such as the precision's autocast; set by whoever does the sweeps.
        self.context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def start(self, fresh: bool = True) -> None:
        """Records a forward sweep from now on.

        Args:
            fresh: Whether to forget what was recorded before; otherwise this is the next micro-batch.
        """
        self.stop()
        if fresh:
            self.clear()
        else:
            self._part += 1
        for layer in self._layers:
            for module in layer.modules:
                if isinstance(module, torch.jit.ScriptModule):
                    # Takes no hooks: it cannot be run alone.
                    continue
                pending: list[Recorded] = []
                self._handles += [
                    module.register_forward_pre_hook(self._before(layer, pending), with_kwargs=True),
                    module.register_forward_hook(self._after(layer, pending), with_kwargs=True),
                ]

    def stop(self) -> None:
        """Records no further calls; adjoints still come in."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def clear(self) -> None:
        """Forgets states and adjoints, so that their memory is free between iterations."""
        self._calls = {}
        self._unusable = set()
        self._part = 0
        self._shares = []

    def weigh(self, shares: Sequence[float]) -> None:
        """Says how much the loss of each micro-batch counts in the loss of the whole data, 1 without it."""
        self._shares = list(shares)

    def scale(self, factor: float) -> None:
        """Makes every micro-batch count so many times as much."""
        self._shares = [share * factor for share in self._shares]

    def unscale(self, scale: float) -> None:
        """Divides the adjoints that were recorded by the factor that the loss was multiplied by."""
        for recorded in (recorded for calls in self._calls.values() for recorded in calls):
            recorded.gradients[:] = [None if g is None else g / scale for g in recorded.gradients]

    def calls(self, layer: Layer) -> list[Recorded]:
        """The calls of a layer that the loss depends on, in their order; empty if the layer cannot be run alone.

        Raises:
            ValueError: If the user named the module as a layer and it was never called.
        """
        calls = [call for module in layer.modules for call in self._calls.get(id(module), [])]
        if layer.chosen and not calls:
            raise ValueError(
                f"layers: {layer.name!r} was not called in the forward sweep (only its parts or its parameters were"
                " used, or it runs inside compiled code), so its Hamiltonian cannot be evaluated: choose modules that"
                " are called."
            )
        if any(id(module) in self._unusable for module in layer.modules):
            return []
        return [call for call in calls if call.has_adjoint]

    def forget(self, layer: Layer) -> None:
        """Records this layer no more."""
        self._layers = [other for other in self._layers if other is not layer]

    def alignment(self, layer: Layer) -> float:
        """Σ_s⟨p_{l+1}, λ_l(x_l, u)⟩ over all calls of the layer, at its present parameters u."""
        with self.context():
            return math.fsum(
                (self._shares[recorded.part] if self._shares else 1.0) * recorded.again().alignment()
                for recorded in self.calls(layer)
            )

    def call_at(self, recorded: Recorded, args: Any, kwargs: Any) -> Call:
        """The recorded adjoint at other inputs, from the module and the generators as they are now."""
        call = Call(self._memory(recorded.module), copied(args), copied(kwargs), self._devices)
        call.gradients = recorded.gradients
        return call

    def _memory(self, module: nn.Module) -> Memory:
        """Takes the module's state; found out once what that is."""
        if id(module) not in self._memories:
            self._memories[id(module)] = Memory(module)
        return self._memories[id(module)]

    def _before(self, layer: Layer, pending: list[Recorded]) -> Callable[..., None]:
        keep = self._inputs(layer)

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            # Copies: what follows in the network may write into them.
            call = Call(self._memory(module), copied(args), copied(kwargs), self._devices) if keep else None
            pending.append(Recorded(module, call, self._part))

        return hook

    def _after(self, layer: Layer, pending: list[Recorded]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            call = pending.pop()
            if not is_nest(output):
                if layer.chosen:
                    raise TypeError(
                        f"layers: {layer.name!r} returned {describe(output)}; a layer must return a tensor or a nest"
                        " of tuples, lists and dicts of tensors."
                    )
                self._unusable.add(id(module))
                return None
            self._calls.setdefault(id(module), []).append(call)
            tensors = floating(output)
            replaced = None
            if sum(t.requires_grad for t in tensors) > 1:
                # One output may have been made from another: through a copy comes only what is outside the layer.
                replaced = mapped(output, lambda t: t.clone() if is_floating(t) and t.requires_grad else t)
                tensors = floating(replaced)
            call.gradients = [None] * len(tensors)
            for index, tensor in enumerate(tensors):
                if tensor.requires_grad:
                    tensor.register_hook(_storing(call.gradients, index))
            return replaced

        return hook


@contextmanager
def recording(boundaries: Boundaries | None, fresh: bool = True) -> Iterator[None]:
    """Records during a forward sweep, see :meth:`Boundaries.start`; nothing to do if there is nothing to record."""
    if boundaries is None:
        yield
        return
    boundaries.start(fresh)
    try:
        yield
    finally:
        boundaries.stop()


def _storing(gradients: list[Tensor | None], index: int) -> Callable[[Tensor], None]:
    def store(gradient: Tensor) -> None:
        known = gradients[index]
        gradients[index] = gradient.detach() if known is None else known + gradient.detach()

    return store

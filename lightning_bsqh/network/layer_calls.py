"""States and adjoints at the boundaries of layers, and Σ_s⟨p_{l+1}, λ_l(x_l, u)⟩ from the layer alone (method §3)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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

    def _as_it_was(self) -> AbstractContextManager[None]:
        return without_trace(self.module, self._random, self._state, self._devices)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Runs the module; gives −p_{l+1} and x_{l+1} for all parts of the output that the loss depends on."""
        outputs = floating(self.module(*self.args, **self.kwargs))
        return [(g, out) for g, out in zip(self.gradients, outputs, strict=True) if g is not None]


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

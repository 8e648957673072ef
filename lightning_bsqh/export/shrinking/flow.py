"""One walk through the network's calls: which channels each gives, and where channels are tied or must stay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from lightning_bsqh.export.shrinking.network import Network, label, shape_of
from lightning_bsqh.export.shrinking.opaque import Opaque
from lightning_bsqh.export.shrinking.plan import Site
from lightning_bsqh.export.shrinking.units import Channels, Units


class Call:
    """One call of the graph as the rules see it, whether module, function or method.

    Args:
        node: The call.
        flow: The walk.
    """

    def __init__(self, node: fx.Node, flow: Flow) -> None:
        self.node, self.flow = node, flow
        self.module: Any = flow.network.module(str(node.target)) if node.op == "call_module" else None
        self.name = label(node)

    @property
    def channels(self) -> Channels:
        """The channels of the first argument.

        Raises:
            Opaque: If nothing is known of them.
        """
        source = self.source
        if source is None:
            raise Opaque("")
        return source

    @property
    def source(self) -> Channels | None:
        """The channels of the first argument, None if they all stay anyway."""
        return self.of(self.node.args[0]) if self.node.args else None

    def of(self, argument: Any) -> Channels | None:
        """The channels of an argument."""
        found = self.flow.channels.get(argument) if isinstance(argument, fx.Node) else None
        return found if isinstance(found, Channels) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first argument."""
        return self._shape(self.node.args[0])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what the call gives."""
        return self._shape(self.node)

    def option(self, name: str, position: int, default: Any) -> Any:
        """An option of a function or method by its name and position, of a module as its attribute."""
        if self.module is not None:
            return getattr(self.module, name, default)
        args = self.node.args
        return self.node.kwargs.get(name, args[position] if len(args) > position else default)

    def evaluate(self, *values: Tensor) -> Tensor:
        """The call on other tensors, each in the place of a node among its arguments.

        Raises:
            Opaque: If other arguments are known at run time only, or the call does not take these.
        """
        left = list(values)
        args = tuple(left.pop(0) if isinstance(arg, fx.Node) and left else arg for arg in self.node.args)
        if any(isinstance(arg, fx.Node) for arg in (*args, *self.node.kwargs.values())):
            raise Opaque("")
        target = self.node.target
        try:
            with torch.no_grad():
                if self.module is not None:
                    return copy.deepcopy(self.module).cpu().double()(*args)
                if isinstance(target, str):
                    return getattr(args[0], target)(*args[1:], **self.node.kwargs)
                return target(*args, **self.node.kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise Opaque("") from error

    def overwrites(self) -> bool:
        """Whether the call changes its argument in place while others still use that."""
        target = self.node.target
        in_place = self.option("inplace", 10**6, False) or (isinstance(target, str) and target.endswith("_"))
        source = self.node.args[0] if self.node.args else None
        return bool(in_place) and isinstance(source, fx.Node) and len(source.users) > 1

    def _shape(self, node: Any) -> tuple[int, ...]:
        shape = shape_of(node) if isinstance(node, fx.Node) else None
        if shape is None:
            raise Opaque("")
        return shape


Rule = Callable[[Call], Any]


class Flow:
    """The channels of all that a network computes.

    Args:
        network: The network.
        modules: Rules by the exact type of a module.
        functions: Rules by function.
        methods: Rules by the name of a tensor's method.
    """

    def __init__(
        self,
        network: Network,
        modules: dict[type[nn.Module], Rule],
        functions: dict[Callable[..., Any], Rule],
        methods: dict[str, Rule],
    ) -> None:
        self.network, self.units = network, Units()
        self.channels: dict[fx.Node, Channels | tuple[Channels | None, ...] | None] = {}
        self.sites: list[Site] = []
        # Modules that are not looked into, and why.
        self.unfollowed: dict[str, str] = {}
        self._rules = modules, functions, methods
        for node in network.nodes:
            self.channels[node] = self._visit(node)

    def tensors(self) -> list[Channels]:
        """The channels of every tensor that has some."""
        found: list[Channels] = []
        for entry in self.channels.values():
            parts = entry if isinstance(entry, tuple) else (entry,)
            found += [part for part in parts if part is not None]
        return found

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "output":
            self._keep_inputs(node, "is given out by the network")
        if node.op in ("placeholder", "output"):
            return None
        rule = self._rule(node)
        try:
            if rule is None:
                raise Opaque("")
            return rule(Call(node, self))
        except Opaque as reason:
            words = f", {reason}" if str(reason) else ", which cannot be followed channel by channel"
            self._keep_inputs(node, f"is used by {label(node)}{words}")
            if node.op == "call_module":
                self.unfollowed[str(node.target)] = str(reason) or "which cannot be followed channel by channel"
            return None

    def _rule(self, node: fx.Node) -> Rule | None:
        modules, functions, methods = self._rules
        if node.op == "get_attr":
            return functions[getattr]
        if node.op == "call_module":
            return modules.get(type(self.network.module(str(node.target))))
        if node.op == "call_method":
            return methods.get(str(node.target))
        return functions.get(cast(Callable[..., Any], node.target))

    def _keep_inputs(self, node: fx.Node, reason: str) -> None:
        for source in node.all_input_nodes:
            entry = self.channels.get(source)
            for part in entry if isinstance(entry, tuple) else (entry,):
                if part is not None:
                    self.units.keep(part.ids, reason)


def own_shape(node: Any) -> tuple[int, ...] | None:
    """The shape of an argument; None if it is no tensor."""
    return shape_of(node) if isinstance(node, fx.Node) else None

"""The traced network: a graph of calls and a copy of the modules that they use."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from lightning_bsqh.export.comparison import evaluating


class Network:
    """A model as a torch.fx graph, with copies of its parameters: the model itself is never changed.

    Args:
        model: The model.
        inputs: Arguments of its forward.

    Raises:
        ValueError: If its forward cannot be traced.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        with evaluating(model):
            self.graph_module = copy.deepcopy(_trace(model, inputs)).eval()
        ShapeProp(self.graph_module).propagate(*(v.clone() if isinstance(v, Tensor) else v for v in inputs))
        self._calls = Counter(node.target for node in self.nodes if node.op in ("call_module", "get_attr"))
        owners = [id(p) for m in self.graph_module.modules() for p in m.parameters(recurse=False)]
        self._owners = Counter(owners)

    @property
    def nodes(self) -> list[fx.Node]:
        """The calls in their order."""
        return list(self.graph_module.graph.nodes)

    def module(self, name: str) -> Any:
        """The module of that name."""
        return self.graph_module.get_submodule(name)

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of that name."""
        owner, _, last = name.rpartition(".")
        return getattr(self.graph_module.get_submodule(owner), last)

    def replace(self, name: str, module: nn.Module) -> None:
        """Puts another module in a module's place."""
        owner, _, last = name.rpartition(".")
        setattr(self.graph_module.get_submodule(owner), last, module)

    def replace_tensor(self, name: str, tensor: Tensor) -> None:
        """Puts another parameter or buffer in the place of one."""
        owner, _, last = name.rpartition(".")
        module, old = self.graph_module.get_submodule(owner), self.tensor(name)
        new = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
        setattr(module, last, new)

    def shared(self, name: str) -> str | None:
        """Why a module's or tensor's size cannot be changed by one call alone; None if it can."""
        if self._calls[name] > 1:
            return f"{name} is used {self._calls[name]} times"
        try:
            module = self.module(name)
        except AttributeError:
            parameters, hooked = [self.tensor(name)], False
        else:
            parameters = list(module.parameters())
            hooked = bool(module._forward_hooks or module._forward_pre_hooks)
        if any(self._owners[id(parameter)] > 1 for parameter in parameters):
            return f"{name} shares a parameter with another module"
        return f"{name} has hooks" if hooked else None


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of what a call gives on the example inputs; None if that is no tensor."""
    meta = node.meta.get("tensor_meta")
    shape = getattr(meta, "shape", None)
    return None if shape is None else tuple(shape)


def label(node: fx.Node) -> str:
    """What a call is called in messages."""
    if node.op == "call_module":
        return str(node.target)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{name} ({node.name})" if str(name) != node.name else str(name)


def _trace(model: nn.Module, inputs: tuple[Any, ...]) -> fx.GraphModule:
    defaults = _defaults(model.forward, len(inputs))
    tracer = fx.Tracer()
    # Else what is computed from buffers would become a constant of another name.
    tracer.proxy_buffer_attributes = True
    try:
        graph = tracer.trace(model, concrete_args=defaults or None)
    except Exception as error:  # whatever the user's forward raises when it meets a proxy
        raise ValueError(
            f"The forward of {type(model).__name__} cannot be traced by torch.fx ({error}): pass a part of it without"
            " control flow that depends on values, or mark what cannot be looked into with torch.fx.wrap."
        ) from error
    _drop_defaults(graph, len(inputs))
    return fx.GraphModule(tracer.root, graph, type(model).__name__)


def _defaults(forward: Callable[..., Any], given: int) -> dict[str, Any]:
    """The arguments that are left to their defaults, which torch.fx would otherwise take for tensors."""
    parameters = list(inspect.signature(forward).parameters.values())[given:]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _drop_defaults(graph: fx.Graph, given: int) -> None:
    """Removes the arguments that were left to their defaults, with the assertions that guard them."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for placeholder in [node for node in placeholders[given:] if not str(node.target).startswith("*")]:
        for node in reversed(_all_users(placeholder)):
            graph.erase_node(node)
        graph.erase_node(placeholder)


def _all_users(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    for user in node.users:
        found += [user, *_all_users(user)]
    return list(dict.fromkeys(found))

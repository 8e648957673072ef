"""Sums and ReLUs that write into the memory of what they read."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from lightning_bsqh.export.comparison import evaluating

# Their outputs are memory of their own, which they do not need again.
_FRESH = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SUMS = (operator.add, torch.add)
_RELUS = (F.relu, torch.relu)


def in_place(network: fx.GraphModule, inputs: tuple[Any, ...]) -> int:
    """Lets sums and ReLUs write into the output of the layer before them, where nothing else reads it; in place.

    New memory for each result is what small networks spend much of their time on.

    Args:
        network: In evaluation mode.
        inputs: Arguments of its forward.

    Returns:
        How many operations have changed.
    """
    with evaluating(network):
        ShapeProp(network).propagate(*inputs)
    changed = 0
    for node in list(network.graph.nodes):
        operands = _operands(network, node)
        if operands is None:
            continue
        with network.graph.inserting_before(node):
            new = network.graph.call_method("add_" if len(operands) == 2 else "relu_", operands)
        new.meta = {**node.meta, "in_place": True}
        node.replace_all_uses_with(new)
        network.graph.erase_node(node)
        changed += 1
    network.delete_all_unused_submodules()
    network.recompile()
    return changed


def _operands(network: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ...] | None:
    """What a sum or a ReLU reads, first that into which it can write; None if it is neither, or there is no such."""
    if _is_relu(network, node):
        operands = node.args[:1]
    elif node.op == "call_function" and node.target in _SUMS and len(node.args) == 2 and not node.kwargs:
        operands = node.args
    else:
        return None
    found = [arg for arg in operands if isinstance(arg, fx.Node) and _is_free(network, arg, node)]
    if not found or not all(isinstance(arg, fx.Node) for arg in operands):
        return None
    return (found[0], *(arg for arg in operands if arg is not found[0] and isinstance(arg, fx.Node)))


def _is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return type(module) is nn.ReLU and not (module._forward_hooks or module._forward_pre_hooks)
    return (node.op == "call_function" and node.target in _RELUS) or (
        node.op == "call_method" and node.target == "relu"
    )


def _is_free(network: fx.GraphModule, source: fx.Node, reader: fx.Node) -> bool:
    """Whether a result may be overwritten by that of its only reader."""
    if len(source.users) > 1 or _form(source) is None or _form(source) != _form(reader):
        return False
    if source.meta.get("in_place"):
        return True
    if source.op != "call_module":
        return False
    module = network.get_submodule(str(source.target))
    return type(module) in _FRESH and not module._forward_hooks


def _form(node: fx.Node) -> tuple[Any, ...] | None:
    found: Any = node.meta.get("tensor_meta")
    return (found.shape, found.dtype) if hasattr(found, "shape") else None

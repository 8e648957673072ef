"""BatchNorm as a part of the convolution or linear layer before it."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fuse_norms(network: nn.Module) -> list[str]:
    """Puts BatchNorm into the layer before it, in place, where nothing else reads that layer.

    Args:
        network: In evaluation mode. Only a traced one, such as ``shrink`` gives, tells which layer comes before which;
            any other stays as it is.

    Returns:
        The names of the BatchNorm layers that have gone.
    """
    if not isinstance(network, fx.GraphModule):
        return []
    nodes = list(network.graph.nodes)
    targets = [node.target for node in nodes if node.op == "call_module"]
    fused = []
    for node in nodes:
        layer = _layer_before(network, node, targets)
        if layer is None:
            continue
        before: Any = network.get_submodule(layer)
        norm: Any = network.get_submodule(node.target)
        fuse: Any = fuse_linear_bn_eval if isinstance(before, nn.Linear) else fuse_conv_bn_eval
        owner, _, last = layer.rpartition(".")
        setattr(network.get_submodule(owner), last, fuse(before, norm))
        node.replace_all_uses_with(node.args[0])
        network.graph.erase_node(node)
        fused.append(node.target)
    network.delete_all_unused_submodules()
    network.recompile()
    return fused


def _layer_before(network: fx.GraphModule, node: fx.Node, targets: list[Any]) -> str | None:
    """The layer that alone goes into a BatchNorm by running statistics, each of them used once."""
    source = node.args[0] if node.op == "call_module" and len(node.args) == 1 else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
        return None
    layer, norm = network.get_submodule(str(source.target)), network.get_submodule(str(node.target))
    matching = type(layer) in (*_CONVOLUTIONS, nn.Linear) and type(norm) in _NORMS and norm.running_mean is not None
    # A linear layer's features are channels only where there are no positions beside them.
    plain = not isinstance(layer, nn.Linear) or (isinstance(norm, nn.BatchNorm1d) and _is_matrix(source))
    once = targets.count(source.target) == targets.count(node.target) == 1
    free = not any(m._forward_hooks or m._forward_pre_hooks for m in (layer, norm))
    return str(source.target) if matching and plain and once and free else None


def _is_matrix(node: fx.Node) -> bool:
    shape = getattr(node.meta.get("tensor_meta"), "shape", ())
    return len(shape) == 2

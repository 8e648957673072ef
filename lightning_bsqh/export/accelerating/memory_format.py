"""Images with their channels last in memory."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn


def channels_last(network: fx.GraphModule, inputs: tuple[object, ...]) -> int:
    """Lets a network of Conv2d run with the channels of a pixel side by side, in place.

    Args:
        network: A traced network.
        inputs: Arguments of its forward.

    Returns:
        How many of its inputs are put into that order.
    """
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return 0
    places = [node for node in network.graph.nodes if node.op == "placeholder"]
    images = [
        node for node, value in zip(places, inputs, strict=False) if isinstance(value, Tensor) and value.dim() == 4
    ]
    for node in images:
        users = list(node.users)
        with network.graph.inserting_after(places[-1]):
            ordered = network.graph.call_method("contiguous", (node,), {"memory_format": torch.channels_last})
        for user in users:
            user.replace_input_with(node, ordered)
    if images:
        # Also weights that only part of the layers use in this order: it changes no value.
        network.to(memory_format=torch.channels_last)
        network.recompile()
    return len(images)

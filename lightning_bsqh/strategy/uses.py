"""How often each weight is used in a forward, for regularizers that ask (``Budget``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_bsqh.callbacks._weights import OutputPositions
from lightning_bsqh.optimizer import BSQHOptimizer


def counting_uses(
    step: Callable[[], Any], module: nn.Module, optimizer: BSQHOptimizer, broadcast: Callable[[Any], Any]
) -> Callable[[], Any]:
    """The same forward, which tells the optimizer how often it used each weight for one sample.

    Args:
        step: Runs a training_step.
        module: The network.
        optimizer: Learns the numbers of uses by the parameters' full names; unknown ones are left out.
        broadcast: Gives all processes the first one's numbers: lengths of texts may differ from process to process.
    """

    def counted() -> Any:
        # As they are outside of a forward: after one, a sharded module may still have gathered ones.
        named = dict(module.named_parameters(remove_duplicate=False))
        positions = OutputPositions(module)
        try:
            output = step()
        finally:
            positions.stop()
        found = {name: positions.of(p) for name, p in named.items()}
        optimizer.learn_uses(broadcast({name: max(1, round(uses)) for name, uses in found.items() if uses}))
        return output

    return counted

"""int8 by torchao beside zeros: what accelerate measures on this machine for linear layers.

    python benchmarks/int8.py [--seconds 4] [--sizes 400x120x64 1024x4096x64]

A size is inputs x outputs x samples of a batch. Each layer is measured without zeros and with 95 % zeros at random
places, on one thread. Compiling takes seconds to minutes for each size, and needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import nn

from lightning_bsqh.export import accelerate


def layer(inputs: int, outputs: int, zeros: float) -> nn.Module:
    """A fresh linear layer with a share of zeros."""
    torch.manual_seed(0)
    made = nn.Linear(inputs, outputs)
    with torch.no_grad():
        made.weight[torch.rand(outputs, inputs) < zeros] = 0.0
    return nn.Sequential(made)


def main(args: Sequence[str] | None = None) -> int:
    """Prints what was tried."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="time per measurement")
    parser.add_argument("--sizes", nargs="+", default=["400x120x64", "1024x4096x64"])
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    for size in options.sizes:
        inputs, outputs, samples = map(int, size.split("x"))
        for zeros in (0.0, 0.95):
            x = torch.randn(samples, inputs, generator=torch.Generator().manual_seed(0))
            result = accelerate(layer(inputs, outputs, zeros), x, options.seconds, int8=True)
            print(f"{inputs} to {outputs}, {samples} samples, {zeros:.0%} zeros\n{result}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

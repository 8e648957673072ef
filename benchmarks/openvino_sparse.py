"""What OpenVINO's decompression of sparse weights gains on this machine, for a pair of linear layers in int8.

    pip install openvino nncf
    python benchmarks/openvino_sparse.py [--zeros 0 0.95] [--batch-size 1] [--seconds 2]

Two linear layers (1024 to 4096 to 1024) with zeros at random places, one thread, three rounds: torch, OpenVINO in
float32, and OpenVINO in int8 (by NNCF) with CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE at 1 (off) and at 0.5 (weights with
more zeros than that are stored compressed).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_bsqh.export.measuring import latencies

DECOMPRESSION = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
WIDTHS = (1024, 4096)


def network(zeros: float) -> nn.Module:
    """Two linear layers with a share of their weights zero."""
    narrow, wide = WIDTHS
    layers = nn.Sequential(nn.Linear(narrow, wide), nn.ReLU(), nn.Linear(wide, narrow)).eval().requires_grad_(False)
    for weight in (parameter for parameter in layers.parameters() if parameter.dim() > 1):
        weight[torch.rand_like(weight) < zeros] = 0.0
    return layers


def ways(model: nn.Module, x: Tensor) -> dict[str, Callable[[Tensor], Any]]:
    """The network as it is run by torch and by OpenVINO."""
    import nncf
    import openvino

    core = openvino.Core()
    plain = openvino.convert_model(model, example_input=x)
    small = nncf.quantize(plain, nncf.Dataset([torch.randn_like(x).numpy() for _ in range(20)]))
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = {"OpenVINO float32": core.compile_model(plain, "CPU", options | {"INFERENCE_PRECISION_HINT": "f32"})}
    for rate in (1.0, 0.5):
        compiled[f"OpenVINO int8, rate {rate:g}"] = core.compile_model(small, "CPU", options | {DECOMPRESSION: rate})
    return {"torch": model} | {name: _runs(way) for name, way in compiled.items()}


def _runs(compiled: Any) -> Callable[[Tensor], Any]:
    return lambda x: compiled([x.numpy()])


def main(args: Sequence[str] | None = None) -> int:
    """Prints the milliseconds of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--zeros", type=float, nargs="+", default=[0.0, 0.95])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(options.batch_size, WIDTHS[0])
    for zeros in options.zeros:
        try:
            found = ways(network(zeros), x)
        except ModuleNotFoundError as error:
            print(f"{error}: pip install openvino nncf", file=sys.stderr)
            return 1
        rounds = [latencies(list(found.values()), (x,), options.seconds) for _ in range(3)]
        print(f"{zeros:.0%} zeros, batches of {options.batch_size}, milliseconds in three rounds:")
        for i, name in enumerate(found):
            print(f"  {name:<24}" + "".join(f"{times[i]:>9.3f}" for times in rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What export makes of trained sparse networks: files, sizes, multiplications and time on this machine.

    python benchmarks/export.py [--networks lenet5 resnet8 digits] [--mnist FOLDER] [--cifar10 FOLDER] [--output FOLDER]
        [--processor-time]

Trains by the recipes (digits_lenet5, mnist_lenet5_groups, cifar10_resnet8_groups), reads the run folders as
lightning-bsqh export does, and prints three tables for each: trained against shrunk and accelerated, for one image and
for a batch of 64; the bytes of a sparse file at 90, 95 and 98 % zeros; what accelerate tried. The last lines, of three
rounds, have ONNX Runtime, too, and what a network without zeros gains, which is not the zeros' doing. A run that lies
in the output folder already is not trained again. Networks whose data are missing are left out, by name.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_bsqh.export import accelerate, load_sparse, measure, save_sparse, shrink, shrink_report, table, to_onnx
from lightning_bsqh.export.measuring import latencies
from lightning_bsqh.export.run_folder import Run, example_inputs, load_run, metrics_of_test
from lightning_bsqh.zoo import LeNet5, SmallLeNet

RECIPES = Path(__file__).parent.parent / "recipes"
NETWORKS = {"digits": "digits_lenet5", "lenet5": "mnist_lenet5_groups", "resnet8": "cifar10_resnet8_groups"}


def train(recipe: str, root: Path | None, folder: Path, options: Sequence[str] = ()) -> Path:
    """The run folder of a recipe, trained unless it is there."""
    if not list(folder.rglob("*.ckpt")):
        from lightning_bsqh.cli import main as command

        arguments = ["fit", "--config", str(RECIPES / f"{recipe}.yaml")]
        arguments += [] if root is None else ["--data.root", str(root)]
        logger = "--trainer.logger.init_args."
        arguments += [f"{logger}save_dir", str(folder.parent), f"{logger}name", folder.name, f"{logger}version", ""]
        command([*arguments, "--trainer.enable_progress_bar", "false", *options])
    return folder


def compare(run: Run, batch_size: int, seconds: float, clock: Callable[[], float] = time.perf_counter) -> str:
    """The table of a run for batches of one size, and what was tried to make it faster."""
    inputs = example_inputs(run, batch_size)
    small = shrink(run.model, inputs)
    fast = accelerate(small, inputs, seconds / 5)
    networks: dict[str, nn.Module] = {"trained": run.model, "shrunk": small}
    columns = dict(zip(networks, measure(list(networks.values()), inputs, seconds), strict=True))
    metrics: dict[str, dict[str, float]] = {}
    for heading, network in {"trained": None, "shrunk": small}.items():
        for name, value in metrics_of_test(run, network).items():
            metrics.setdefault(name, {})[heading] = value
    lines = [f"batches of {batch_size}", table(columns, metrics), "", "accelerate, after shrink:", str(fast)]
    filled = shrink(_filled(run.model), inputs)
    ways: dict[str, Callable[..., Any]] = {"trained": run.model, "shrunk": small, "shrunk, accelerated": fast.network}
    ways["no zeros, accelerated"] = accelerate(filled, inputs, seconds / 5).network
    ways |= {f"{name}, ONNX Runtime": _onnx(net, inputs) for name, net in (("no zeros", filled), ("shrunk", small))}
    lines += ["", "milliseconds, and how many times less than trained, in three rounds:"]
    rounds = [latencies(list(ways.values()), inputs, seconds, clock) for _ in range(3)]
    for i, name in enumerate(ways):
        lines.append(f"{name:<24}" + "".join(f"{times[i]:>10.3f} ({times[0] / times[i]:.2f} x)" for times in rounds))
    return "\n".join(lines)


def _onnx(network: nn.Module, inputs: tuple[Any, ...]) -> Callable[..., Any]:
    """Runs a network by ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        file = to_onnx(network, inputs, Path(folder) / "network.onnx").path.read_bytes()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (name,) = (node.name for node in session.get_inputs())
    return lambda x: session.run(None, {name: x.numpy()})


def _filled(model: nn.Module) -> nn.Module:
    """A copy in which no parameter is zero."""
    filled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in filled.parameters():
            parameter[parameter == 0] = 0.01
    return filled


def sizes(folder: Path) -> str:
    """How many times smaller than dense float32 a sparse file is, for weights at random places."""
    lines = ["network     zeros  dense bytes  sparse file   ratio"]
    for network in (SmallLeNet(), LeNet5()):
        for zeros in (0.9, 0.95, 0.98):
            _sparsify(network, zeros)
            path = folder / "size.safetensors"
            size = save_sparse(network, path, overwrite=True)
            assert load_sparse(path).keys() == network.state_dict().keys()
            dense = sum(4 * parameter.numel() for parameter in network.parameters())
            name = type(network).__name__
            lines.append(f"{name:<10}  {zeros:.0%}  {dense:>11,}  {size:>11,}  {dense / size:>5.1f} x")
            path.unlink()
    return "\n".join(lines)


def _sparsify(network: nn.Module, zeros: float) -> None:
    """The smallest weights of the network become zero."""
    weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    magnitudes = torch.cat([w.detach().abs().flatten() for w in weights])
    bound = magnitudes.kthvalue(round(zeros * len(magnitudes))).values
    with torch.no_grad():
        for w in weights:
            w[w.abs() <= bound] = 0.0


def main(args: Sequence[str] | None = None) -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--mnist", type=Path, default=Path("data/mnist"))
    parser.add_argument("--cifar10", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--output", type=Path, default=Path("runs/export"))
    parser.add_argument("--seconds", type=float, default=5.0, help="time per measurement")
    parser.add_argument(
        "--processor-time", action="store_true", help="in the three rounds: on a machine that others use, too"
    )
    parser.add_argument("--fit", nargs=argparse.REMAINDER, default=[], help="further arguments of the training")
    options = parser.parse_args(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    clock = time.thread_time if options.processor_time else time.perf_counter
    options.output.mkdir(parents=True, exist_ok=True)
    roots = {"digits": None, "lenet5": options.mnist, "resnet8": options.cifar10}
    for name in options.networks:
        if roots[name] is not None and not roots[name].is_dir():
            print(f"{name} is left out: there is no folder {roots[name]}")
            continue
        run = load_run(train(NETWORKS[name], roots[name], options.output / name, options.fit))

        print(f"\n{name}: {shrink_report(shrink(run.model, example_inputs(run, 1)))}\n")
        for batch_size in (1, 64):
            print(compare(run, batch_size, options.seconds, clock), end="\n\n")
    print(sizes(options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())

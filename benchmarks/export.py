"""What export makes of trained sparse networks: files, sizes, multiplications and time on this machine.

    python benchmarks/export.py [--networks lenet5 resnet8 digits] [--mnist FOLDER] [--cifar10 FOLDER] [--output FOLDER]

Trains by the recipes (digits_lenet5, mnist_lenet5_groups, cifar10_resnet8_groups), reads the run folders as
lightning-bsqh export does, and prints three tables for each: trained against shrunk and accelerated, for one image and
for a batch of 64; the bytes of a sparse file at 90, 95 and 98 % zeros; what accelerate tried. The last lines, of three
rounds, also tell what accelerate gives the network without zeros, which is not theirs. A run that lies in the output
folder already is not trained again. Networks whose data are missing are left out, by name.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lightning_bsqh.export import accelerate, load_sparse, measure, save_sparse, shrink, shrink_report, table
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


def compare(run: Run, batch_size: int, seconds: float) -> str:
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
    dense = accelerate(shrink(_filled(run.model), inputs), inputs, seconds / 5)
    rounds = [latencies([run.model, dense.network, fast.network], inputs, seconds / 3) for _ in range(3)]
    lines = [f"batches of {batch_size}", table(columns, metrics), "", "accelerate, after shrink:", str(fast)]
    lines += [
        f"trained → shrunk and accelerated: {trained:.3f} → {both:.3f} ms ({trained / both:.2f} x);"
        f" without zeros, accelerated: {alone:.3f} ms ({trained / alone:.2f} x)"
        for trained, alone, both in rounds
    ]
    return "\n".join(lines)


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
    parser.add_argument("--fit", nargs=argparse.REMAINDER, default=[], help="further arguments of the training")
    options = parser.parse_args(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    roots = {"digits": None, "lenet5": options.mnist, "resnet8": options.cifar10}
    for name in options.networks:
        if roots[name] is not None and not roots[name].is_dir():
            print(f"{name} is left out: there is no folder {roots[name]}")
            continue
        run = load_run(train(NETWORKS[name], roots[name], options.output / name, options.fit))

        print(f"\n{name}: {shrink_report(shrink(run.model, example_inputs(run, 1)))}\n")
        for batch_size in (1, 64):
            print(compare(run, batch_size, options.seconds), end="\n\n")
    print(sizes(options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())

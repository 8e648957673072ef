"""The command ``lightning-bsqh export``."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_bsqh.export.before_after import compare, keep
from lightning_bsqh.export.finished_file import check_free
from lightning_bsqh.export.measuring import aligned
from lightning_bsqh.export.run_folder import example_inputs, load_run
from lightning_bsqh.export.runtimes import to_onnx, to_pt2
from lightning_bsqh.export.shrinking import shrink, shrink_report
from lightning_bsqh.export.sparse_file import save_sparse

DESCRIPTION = (
    "Writes the network of a run to a file: sparse, or for another runtime; with --shrink, without the filters and"
    " neurons that are zero. Prints parameters, bytes, multiply-adds, latency and test results before and after."
)


def main(args: Sequence[str] | None = None) -> None:
    """Runs ``lightning-bsqh export``.

    Args:
        args: The arguments after ``export``; None takes ``sys.argv``.

    Raises:
        SystemExit: If an argument is wrong, or the network cannot be read or exported.
    """
    parser = argparse.ArgumentParser(prog="lightning-bsqh export", description=DESCRIPTION)
    add_arguments(parser)
    code = run(parser.parse_args(args))
    if code:
        raise SystemExit(code)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="folder with a config.yaml and a checkpoint")
    parser.add_argument("--shrink", action="store_true", help="remove zero filters, neurons and what only they need")
    parser.add_argument("--to", choices=("safetensors", "onnx", "pt2"), default=None, help="the kind of file to write")
    parser.add_argument("--output", type=Path, default=None, metavar="FILE", help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("--keep-table", action="store_true", help="keep the table in RUN_FOLDER, for its report")
    parser.add_argument("--checkpoint", type=Path, default=None, metavar="FILE", help="default: best, or the newest")
    parser.add_argument("--batch-size", type=_positive, default=1, help="samples per timed forward (default: 1)")
    parser.add_argument("--threads", type=_positive, default=1, help="threads of torch (default: 1)")


def run(options: argparse.Namespace) -> int:
    """Exports, and prints what came of it.

    Args:
        options: What :func:`add_arguments` has parsed.

    Returns:
        0, or 1 after one sentence on stderr.
    """
    try:
        _run(options)
    except (ModuleNotFoundError, ValueError, TypeError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    if (options.to is None) != (options.output is None):
        raise ValueError("--to and --output go together: what to write, and where.")
    if options.output is not None:
        # Before the work, not after it.
        check_free(options.output, options.overwrite)
    torch.set_num_threads(options.threads)
    _quieten()
    loaded = load_run(options.folder, options.checkpoint)
    print(f"checkpoint  {loaded.checkpoint}")
    inputs = example_inputs(loaded, options.batch_size)
    # Two samples at least: with one, a batch could be taken for any other dimension of one.
    network = shrink(loaded.model, example_inputs(loaded, max(2, options.batch_size))) if options.shrink else None
    if network is not None:
        print(shrink_report(network), end="\n\n")
    rows = compare(loaded, network, inputs)
    print(aligned(rows))
    if options.output is not None:
        print(_write(options, loaded.model if network is None else network, inputs))
    if options.keep_table:
        print(f"table  {keep(rows, options.folder)}")


def _write(options: argparse.Namespace, network: nn.Module, inputs: tuple[Any, ...]) -> str:
    if options.to == "safetensors":
        size = save_sparse(network, options.output, overwrite=options.overwrite)
        return f"{options.output}  {size:,} bytes"
    write = to_onnx if options.to == "onnx" else to_pt2
    written = write(network, inputs, options.output, overwrite=options.overwrite)
    batch = "any batch size" if written.batch_size is None else f"batches of {written.batch_size} only"
    return f"{options.output}  {written.bytes:,} bytes, {batch}, outputs differ by {written.difference:.1e}"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _quieten() -> None:
    """Leaves out what Lightning says about a test without a logger."""
    from lightning_bsqh.namespace import FABRIC, NAME

    logging.getLogger(NAME).setLevel(logging.WARNING)
    logging.getLogger(FABRIC).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many")

"""The command ``lightning-bsqh``: its subcommands and their options, without torch until one of them runs.

A module of its own beside the package: importing anything from ``lightning_bsqh`` registers the strategy "bsqh" with
Lightning, which takes seconds and needs torch, and help should need neither.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_DESCRIPTION = (
    "Trains sparse networks by the batch sequential quadratic Hamiltonian method. Start with: lightning-bsqh demo, or"
    " with one of the recipes: lightning-bsqh fit --config mnist_lenet5."
)
_LIGHTNING = {
    "fit": "train, then test: lightning-bsqh fit --config RECIPE_OR_FILE --name NAME",
    "validate": "validate a network",
    "test": "test a network",
    "predict": "predict with a network",
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line; modules in the present folder can be named by class path.

    Args:
        args: The arguments, without the program's name; None takes ``sys.argv``.

    Raises:
        SystemExit: If an argument is wrong, a package that is needed is not installed, or the command ends with an
            error that its user can mend.
    """
    typed = list(sys.argv[1:] if args is None else args)
    first = typed[0] if typed else "--help"
    with _any_output():
        if first in ("-h", "--help", "--version"):
            _parser().parse_args([first])
        elif first in _COMMANDS and _is_there(first):
            _run(_COMMANDS[first], first, typed[1:])
        elif first in _LIGHTNING or first.startswith("-"):
            _lightning(args)
        else:
            _parser().error(f"there is no command {first!r}: choose from {', '.join(_names())}")


@dataclass(frozen=True)
class _Command:
    """A command that is not Lightning's: its sentence, its options, and the module whose ``run`` takes them."""

    help: str
    module: str
    add_arguments: Callable[[argparse.ArgumentParser], None]


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="run folder (default: %(default)s)")
    parser.add_argument("--epochs", type=_at_least_one, default=None, help="number of epochs (default: the recipe's)")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", metavar="[NAME=]RUN_FOLDER", help="folder with a metrics.csv; NAME is what it is called"
    )
    parser.add_argument(
        "--output", type=Path, default=None, metavar="FILE", help="file to write (default: RUN_FOLDER/report.html)"
    )


def _workspace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--entity", required=True, help="user or team that the project belongs to")
    parser.add_argument("--project", required=True, help="the project")
    parser.add_argument("--name", default="Sparse training with bSQH", help="its name (default: %(default)s)")
    parser.add_argument(
        "--layers", nargs="+", default=[], metavar="LAYER", help="convolutions whose masks stand beside the bars"
    )


def _recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default=None, help="the recipe to print (default: list all)")
    parser.add_argument(
        "--copy", nargs="?", type=Path, const=Path(), default=None, metavar="FOLDER",
        help="copy it into this folder, by default the present one; a file that is there already stays",
    )  # fmt: skip


def _export(parser: argparse.ArgumentParser) -> None:
    importlib.import_module("lightning_bsqh.export.command").add_arguments(parser)


_COMMANDS = {
    "demo": _Command("train a sparse LeNet on the digits that scikit-learn carries", "lightning_bsqh.cli.demo", _demo),
    "report": _Command(
        "write one HTML file about a run, or about several side by side: curves, zeros per layer, masks and settings;"
        " it opens in a browser without a network",
        "lightning_bsqh.report.command",
        _report,
    ),
    "workspace": _Command(
        "save a W&B workspace: objective, ε and trials, Hamiltonian, sparsity, pictures",
        "lightning_bsqh.wandb.command",
        _workspace,
    ),
    "recipes": _Command("list the recipes, print one, or copy one", "lightning_bsqh.cli.recipes", _recipes),
    "export": _Command("write a trained sparse network in another form", "lightning_bsqh.export.command", _export),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-bsqh",
        description=_DESCRIPTION,
        epilog="lightning-bsqh COMMAND --help tells the options of a command.",
        usage="lightning-bsqh [-h] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"lightning-bsqh {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND ...", required=True)
    for name in _names():
        commands.add_parser(name, help=_LIGHTNING.get(name) or _COMMANDS[name].help)
    return parser


def _names() -> list[str]:
    return [*_LIGHTNING, *(name for name in _COMMANDS if _is_there(name))]


def _is_there(name: str) -> bool:
    """Whether the package has the command, without importing the package."""
    # Only the first name: finding a module inside a package imports the package.
    package = importlib.util.find_spec("lightning_bsqh")
    folders = list(package.submodule_search_locations or []) if package is not None else []
    inside = Path(*_COMMANDS[name].module.split(".")[1:]).with_suffix(".py")
    return any((Path(folder) / inside).is_file() for folder in folders)


def _version() -> str:
    """That of the package that would run, without importing it; pip may have noted that of an earlier checkout."""
    package = importlib.util.find_spec("lightning_bsqh")
    assert package is not None
    assert package.origin is not None
    found = re.search(r'^__version__ = "(.+)"$', Path(package.origin).read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def _run(command: _Command, name: str, args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=f"lightning-bsqh {name}", description=f"{command.help[0].upper()}{command.help[1:]}."
    )
    command.add_arguments(parser)
    options = parser.parse_args(args)
    code = importlib.import_module(command.module).run(options)
    if code:
        raise SystemExit(code)


def _lightning(args: Sequence[str] | None) -> None:
    # What jsonargparse[signatures] brings; LightningCLI cannot do without either.
    if any(importlib.util.find_spec(name) is None for name in ("jsonargparse", "typeshed_client")):
        raise SystemExit('lightning-bsqh needs jsonargparse: pip install "jsonargparse[signatures]"')
    # Class paths may name the user's own modules in this folder, as under ``python -m``.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    importlib.import_module("lightning_bsqh.cli.lightning_cli").run(args)


@contextlib.contextmanager
def _any_output() -> Iterator[None]:
    """Lets no character that the terminal does not know, such as ε on cp1252, end a command: a ? stands for it."""
    strict = [stream for stream in (sys.stdout, sys.stderr) if getattr(stream, "errors", None) == "strict"]
    changed = [stream for stream in strict if hasattr(stream, "reconfigure")]
    for stream in changed:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream in changed:
            if not stream.closed:
                stream.reconfigure(errors="strict")


def _at_least_one(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


if __name__ == "__main__":
    main()

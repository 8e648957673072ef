"""The command ``lightning-bsqh``: LightningCLI, the demo, the report and the workspace."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line; modules in the present folder can be named by class path.

    Args:
        args: The arguments, without the program's name; None takes ``sys.argv``.

    Raises:
        SystemExit: If an argument is wrong, or jsonargparse is not installed.
    """
    typed = sys.argv[1:] if args is None else args
    if typed and typed[0] == "report":
        from lightning_bsqh.report.command import main as report

        report(typed[1:])
        return
    # What jsonargparse[signatures] brings; LightningCLI cannot do without either.
    if any(importlib.util.find_spec(name) is None for name in ("jsonargparse", "typeshed_client")):
        raise SystemExit('lightning-bsqh needs jsonargparse: pip install "jsonargparse[signatures]"')
    if typed and typed[0] == "demo":
        from lightning_bsqh.cli.demo import main as demo

        demo(typed[1:])
    elif typed and typed[0] == "workspace":
        from lightning_bsqh.wandb.workspace import main as workspace

        workspace(typed[1:])
    else:
        # Class paths may name the user's own modules in this folder, as under ``python -m``.
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.insert(0, os.getcwd())
        from lightning_bsqh.cli.lightning_cli import BSQHCLI

        BSQHCLI(args)

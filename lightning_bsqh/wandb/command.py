"""The command ``lightning-bsqh workspace``; its options are in ``lightning_bsqh_cli``."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from typing import Any

from lightning_bsqh.wandb.key import HOW_TO_GET_A_KEY, has_key
from lightning_bsqh.wandb.workspace import INSTALL, build_workspace


def run(options: argparse.Namespace) -> int:
    """Saves a workspace and says where it is.

    Args:
        options: ``entity``, ``project``, ``name`` and ``layers``.

    Raises:
        SystemExit: If a name is wrong, a package is not installed, there is no key, or W&B refuses.
    """
    missing = [name for name in ("wandb", "wandb_workspaces") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"lightning-bsqh workspace needs {', '.join(missing)}: {INSTALL}")
    try:
        workspace = build_workspace(options.entity, options.project, options.name, options.layers)
    except ValueError as error:
        sys.stderr.write(f"lightning-bsqh workspace: error: {error}\n")
        raise SystemExit(2) from error
    mode = os.environ.get("WANDB_MODE", "online")
    if mode in ("offline", "dryrun", "disabled"):
        raise SystemExit(f"Saving a workspace needs W&B's server, but WANDB_MODE is {mode!r}: unset it.")
    _save(workspace, options)
    print(f"workspace      {workspace.url}")
    return 0


def _save(workspace: Any, options: argparse.Namespace) -> None:
    from wandb.errors import Error

    try:
        if not has_key():
            raise SystemExit(f"Saving a workspace needs a W&B key, and there is none. {HOW_TO_GET_A_KEY}")
        workspace.save()
    except Error as error:
        raise SystemExit(
            f"W&B did not save the workspace for entity {options.entity!r} and project {options.project!r}: {error}"
        ) from error

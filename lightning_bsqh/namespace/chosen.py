"""Which of Lightning's two names this process uses: ``lightning.pytorch`` or ``pytorch_lightning``."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable

#: Set to one of the two names, this environment variable decides.
VARIABLE = "LIGHTNING_BSQH_NAMESPACE"
#: The two names, each with the package that it is in. Where nothing tells, the first that is installed.
PACKAGES = {"lightning.pytorch": "lightning", "pytorch_lightning": "pytorch_lightning"}


def choose(wanted: str | None, imported: Iterable[str], is_installed: Callable[[str], bool]) -> str:
    """The name to import Lightning under.

    Classes of the one are none of the other, so it has to be the user's. It is fixed when ``lightning_bsqh`` is
    imported for the first time.

    Args:
        wanted: What the environment variable says, None or empty if it says nothing.
        imported: Names of the modules that are imported, in their order.
        is_installed: Whether there is a package of a name.

    Returns:
        What is wanted; else the one that was imported, the first of them if it is both; else one that is installed.

    Raises:
        ValueError: If something else is wanted.
        ModuleNotFoundError: If neither is installed.
    """
    if wanted:
        name = "lightning.pytorch" if wanted == "lightning" else wanted
        if name not in PACKAGES:
            raise ValueError(f"{VARIABLE} must be one of {', '.join(PACKAGES)}, got {wanted!r}.")
        return name
    found = next((name for name in imported if name in PACKAGES), None)
    found = found or next((name for name, package in PACKAGES.items() if is_installed(package)), None)
    if found is None:
        raise ModuleNotFoundError("lightning_bsqh needs PyTorch Lightning: pip install lightning", name="lightning")
    return found


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


#: The name in use.
NAME = choose(os.environ.get(VARIABLE), list(sys.modules), _is_installed)
(OTHER,) = PACKAGES.keys() - {NAME}
#: The package of ``NAME`` that both share: Fabric.
FABRIC = "lightning.fabric" if NAME == "lightning.pytorch" else "lightning_fabric"

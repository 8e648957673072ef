"""What to do where W&B has no key: say how to get one, and go on offline where that is possible."""

from __future__ import annotations

import os
from collections.abc import Iterable

from lightning_bsqh.namespace import Logger, WandbLogger, rank_zero_warn

#: How to get a key.
HOW_TO_GET_A_KEY = (
    "To get one, run `wandb login`: it names the page on which to sign up and to copy the key. Without a terminal, put "
    "the key into the environment variable WANDB_API_KEY."
)


def has_key() -> bool:
    """Whether W&B finds a key, without asking for one.

    Raises:
        ModuleNotFoundError: If wandb is not installed.
        wandb.errors.AuthenticationError: If there is something that cannot be a key.
    """
    import wandb

    # Whether W&B accepts it is seen when it is used.
    return bool(wandb.login(prompt=False, verify=False))


def start_runs(loggers: Iterable[Logger]) -> None:
    """Starts the runs of those loggers that are W&B's; where there is no key, offline and with a warning.

    Sets ``WANDB_MODE=offline`` for this process in that case. At a terminal W&B asks for a key first.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb
            from wandb.errors import UsageError

            try:
                _ = logger.experiment
            except UsageError as error:
                if has_key():
                    raise
                os.environ["WANDB_MODE"] = "offline"
                # W&B has read the environment already, and does so once.
                wandb.setup(wandb.Settings(mode="offline"))
                rank_zero_warn(
                    f"W&B says: {error} The run is written offline, and the training goes on; `wandb sync FOLDER` "
                    f"uploads it later, FOLDER being the folder wandb/offline-run-... of the run. {HOW_TO_GET_A_KEY}"
                )
                _ = logger.experiment

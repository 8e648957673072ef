"""A training that is started as users start theirs: ``script.py launchers|elastic|slurm FOLDER``."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from typing_extensions import override

import lightning_bsqh
from tests.older_lightning import accept_weights_only
from tests.processes.training import Classes, loader, make_trainer

#: Steps of an epoch.
EPOCH = 8


class Dies(pl.Callback):
    """The second process is killed after so many steps."""

    def __init__(self, after: int | None) -> None:
        self.after = after

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.after and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def train(folder: Path, epochs: int, dies_after: int | None = None, resumed: Path | None = None) -> pl.Trainer:
    """A training of two processes that somebody else has started."""
    strategy = lightning_bsqh.BSQHStrategy(total_steps=2 * EPOCH, timeout=timedelta(seconds=60))
    callbacks = [Dies(dies_after)]
    trainer = make_trainer(strategy, folder, 2, max_epochs=epochs, max_steps=-1, callbacks=callbacks)
    trainer.fit(Classes(), loader(2), ckpt_path=resumed, weights_only=True)
    return trainer


def elastic(folder: Path) -> None:
    """The second process is killed in the second epoch of the first attempt; the next goes on from the checkpoint."""
    first = folder / "first.ckpt"
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        train(folder, 1).save_checkpoint(first)
        train(folder, 2, dies_after=EPOCH + 4, resumed=first)
    trainer = train(folder, 2, resumed=first)
    torch.save(weights(trainer.lightning_module), folder / f"elastic{trainer.global_rank}.pt")


def launchers(folder: Path) -> None:
    """Lightning starts the processes: forked ones as in a notebook, then others that run this script."""
    if "LOCAL_RANK" not in os.environ:
        strategy = lightning_bsqh.BSQHStrategy(start_method="fork")
        trainer = make_trainer(strategy, folder, 2, max_steps=4)
        trainer.fit(Classes(), _shuffled())
        torch.save(weights(trainer.lightning_module), folder / "fork.pt")
    trainer = make_trainer("bsqh", folder, 2, max_steps=4)
    trainer.fit(Classes(), _shuffled())
    torch.save(weights(trainer.lightning_module), folder / f"popen{trainer.global_rank}.pt")


def slurm(folder: Path) -> None:
    """What srun starts once per process."""
    trainer = make_trainer("bsqh", folder, 2, max_steps=4)
    assert isinstance(trainer.strategy.cluster_environment, SLURMEnvironment)
    trainer.fit(Classes(), _shuffled())
    torch.save(weights(trainer.lightning_module), folder / f"slurm{trainer.global_rank}.pt")


def notebook(folder: Path) -> None:
    """Two cells of a notebook: a training by forked processes, and one that goes on with its weights."""
    module, found = Classes(), []
    for _ in range(2):
        trainer = make_trainer("bsqh", folder, 2, max_steps=4)
        assert trainer.strategy.launcher.is_interactive_compatible
        trainer.fit(module, _shuffled())
        found.append(weights(trainer.lightning_module))
    torch.save(found, folder / "notebook.pt")


def _shuffled() -> Any:
    return loader(1, batch=6)


if __name__ == "__main__":
    accept_weights_only()
    {"elastic": elastic, "launchers": launchers, "slurm": slurm}[sys.argv[1]](Path(sys.argv[2]))

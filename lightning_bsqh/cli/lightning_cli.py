"""LightningCLI with a test after the fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden

# Registers the strategy, so that the string "bsqh" works in YAML and on the command line.
import lightning_bsqh  # noqa: F401
from lightning_bsqh.callbacks._weights import count_zero_groups, layer_weights, sparsity_values
from lightning_bsqh.cli.log_config import LogConfigCallback
from lightning_bsqh.wandb.key import start_runs

_DESCRIPTION = (
    "Trains sparse networks by the batch sequential quadratic Hamiltonian method. "
    "Start with one of the recipes: lightning-bsqh fit --config recipes/NAME.yaml, or with: lightning-bsqh demo. "
    "What a run has left is shown by: lightning-bsqh report RUN_FOLDER. "
    "A workspace for W&B: lightning-bsqh workspace --help"
)


class BSQHCLI(LightningCLI):
    """LightningCLI for any module and data module; after ``fit`` it tests, and prints accuracy and zeros.

    Args:
        args: The arguments of the command line, without the program's name; None takes ``sys.argv``.
        **options: Further arguments of LightningCLI.
    """

    def __init__(self, args: Sequence[str] | None = None, **options: Any) -> None:
        defaults: dict[str, Any] = {
            "seed_everything_default": 0,
            "save_config_callback": LogConfigCallback,
            "save_config_kwargs": {"overwrite": True},
            "parser_kwargs": {"description": _DESCRIPTION},
        }
        super().__init__(args=None if args is None else list(args), **{**defaults, **options})

    def before_fit(self) -> None:
        """Starts W&B runs, where there are any; without a key, offline."""
        start_runs(self.trainer.loggers)

    def after_fit(self) -> None:
        """Tests the network where the data have a test set, and says how many weights, filters and rows are zero."""
        if self.trainer.interrupted:
            return
        weights = layer_weights(self.trainer, self.model)
        values = sparsity_values(weights)
        owner = self.datamodule if self.datamodule is not None else self.model
        metrics: dict[str, float] = {}
        if is_overridden("test_dataloader", owner) and is_overridden("test_step", self.model):
            for result in self.trainer.test(self.model, datamodule=self.datamodule, verbose=False):
                metrics |= result
        if self.trainer.is_global_zero:
            for name, value in metrics.items():
                # A loss may be far below what four decimals show.
                print(f"{name:<14} {value:{'.4f' if value == 0.0 or abs(value) >= 1e-3 else '.2e'}}")
            print(f"{'sparsity':<14} {values['sparsity/total']:.4f} ({values['nonzero/total']:,.0f} weights are left)")
            for kind, (zeros, total) in count_zero_groups(weights).items():
                print(f"{'zero ' + kind:<14} {zeros / max(total, 1):.4f} ({zeros:,} of {total:,})")
            if self.trainer.log_dir is not None:
                print(f"{'run folder':<14} {self.trainer.log_dir}")

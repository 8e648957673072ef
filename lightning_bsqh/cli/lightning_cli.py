"""LightningCLI with a test after the fit."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from typing import Any

from typing_extensions import override

from lightning_bsqh.callbacks._weights import count_zero_groups, layer_weights, sparsity_values
from lightning_bsqh.cli.errors import SHOW_TRACEBACKS, in_short, sentence_for
from lightning_bsqh.cli.log_config import LogConfigCallback
from lightning_bsqh.cli.recipes import find_recipes
from lightning_bsqh.cli.run_folder import RunFolders, name_run
from lightning_bsqh.namespace import is_overridden, pl
from lightning_bsqh.namespace.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning_bsqh.trainer_access import callbacks_of
from lightning_bsqh.wandb.key import start_runs


def run(args: Sequence[str] | None = None) -> None:
    """Runs ``lightning-bsqh fit``, ``validate``, ``test`` or ``predict``.

    Args:
        args: The arguments of the command line; None takes ``sys.argv``.

    Raises:
        SystemExit: If an option is wrong, after a sentence that says what. The environment variable
            LIGHTNING_BSQH_TRACEBACK has the traceback shown instead.
    """
    try:
        BSQHCLI(args)
    except Exception as error:
        said = None if os.environ.get(SHOW_TRACEBACKS) else sentence_for(error)
        if said is None:
            raise
        sys.stderr.write(f"lightning-bsqh: error: {said}\n")
        raise SystemExit(2) from error


class BSQHCLI(LightningCLI):
    """LightningCLI for any module and data module; after ``fit`` it tests, and prints accuracy and zeros.

    ``--config`` takes the name of a recipe, too, and ``--name`` names the run.

    Args:
        args: The arguments of the command line, without the program's name; None takes ``sys.argv``.
        **options: Further arguments of LightningCLI.

    Raises:
        SystemExit: If the arguments cannot be parsed.
        ValueError: If a run has the name of an earlier one.
    """

    _folders: RunFolders | None = None

    def __init__(self, args: Sequence[str] | None = None, **options: Any) -> None:
        # Its errors are shortened here.
        plain = {"exit_on_error": False}
        defaults: dict[str, Any] = {
            "seed_everything_default": 0,
            "save_config_callback": LogConfigCallback,
            "parser_kwargs": {**plain, **{name: dict(plain) for name in self.subcommands()}},
        }
        try:
            super().__init__(args=None if args is None else list(args), **{**defaults, **options})
        except ArgumentError as error:
            sys.stderr.write(f"lightning-bsqh: error: {in_short(str(error))}\n")
            sys.stderr.write("The options there are: lightning-bsqh fit --help\n")
            raise SystemExit(2) from error
        except BaseException:
            self._forget_what_never_began()
            raise

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--name``."""
        parser.add_argument("--name", type=str | None, default=None, help="What the run is called: its folder's name.")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Takes the names of recipes for their files, then parses."""
        if isinstance(args, list):
            super().parse_arguments(parser, find_recipes(args))
        elif args is None:
            self.config = parser.parse_args(find_recipes(sys.argv[1:]))
        else:
            super().parse_arguments(parser, args)

    @override
    def before_instantiate_classes(self) -> None:
        """Names the run."""
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        if config.get("name") is not None:
            name_run(config.trainer, config.name)

    @override
    def after_instantiate_classes(self) -> None:
        """Sees to it that no earlier run's files are replaced."""
        # On other ranks a logger would count its versions by itself.
        if self.subcommand is not None and self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", 0):
            self._folders = RunFolders(self.trainer.loggers)
            self._folders.check(named=self.config[self.subcommand].get("name") is not None)

    def before_fit(self) -> None:
        """Starts W&B runs, where there are any; without a key, offline."""
        start_runs(self.trainer.loggers)

    def after_fit(self) -> None:
        """Tests the network where the data have a test set, and says how many weights, filters and rows are zero."""
        if self.trainer.interrupted:
            return
        weights = layer_weights(self.trainer, self.model)
        folder = self.trainer.log_dir  # on every rank, since it is sent from one to the others
        lines = sparsity_lines(weights)
        try:
            metrics = self._test()
            # A loss may be far below what four decimals show.
            lines = [
                f"{k:<14} {v:{'.4f' if v == 0.0 or abs(v) >= 1e-3 else '.2e'}}" for k, v in metrics.items()
            ] + lines
        finally:
            # A test that fails does not take the outcome of the training with it.
            if self.trainer.is_global_zero:
                print(*lines, *([] if folder is None else [f"{'run folder':<14} {folder}"]), sep="\n")

    def _test(self) -> dict[str, float]:
        owner = self.datamodule if self.datamodule is not None else self.model
        metrics: dict[str, float] = {}
        if is_overridden("test_dataloader", owner) and is_overridden("test_step", self.model):
            with _none_is_no_data(owner):
                for result in self.trainer.test(self.model, datamodule=self.datamodule, verbose=False):
                    metrics |= result
        return metrics

    def _forget_what_never_began(self) -> None:
        trainer = getattr(self, "trainer", None)
        if trainer is None or self._folders is None:
            return
        kept = [callback for callback in callbacks_of(trainer) if isinstance(callback, LogConfigCallback)]
        if not any(callback.began for callback in kept):
            for callback in kept:
                if callback.written is not None:
                    callback.written.unlink(missing_ok=True)
            self._folders.forget()


def sparsity_lines(weights: dict[str, list[Any]]) -> list[str]:
    """How many weights, filters and rows are zero, as lines for the console.

    Args:
        weights: The regularized weights, by layer.
    """
    values = sparsity_values(weights)
    lines = [f"{'sparsity':<14} {values['sparsity/total']:.4f} ({values['nonzero/total']:,.0f} weights are left)"]
    for kind, (zeros, total) in count_zero_groups(weights).items():
        lines.append(f"{'zero ' + kind:<14} {zeros / max(total, 1):.4f} ({zeros:,} of {total:,})")
    return lines


@contextlib.contextmanager
def _none_is_no_data(owner: pl.LightningDataModule | pl.LightningModule) -> Iterator[None]:
    """Has a ``test_dataloader`` that returns None taken for one without batches, which Lightning passes over."""
    own, given = vars(owner).get("test_dataloader"), owner.test_dataloader

    def loaders() -> Any:
        found = given()
        return [] if found is None else found

    vars(owner)["test_dataloader"] = loaders
    try:
        yield
    finally:
        if own is None:
            del vars(owner)["test_dataloader"]
        else:
            vars(owner)["test_dataloader"] = own

"""The command line."""

from lightning_bsqh.cli.main import main

__all__ = ["main"]

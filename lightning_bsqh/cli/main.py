"""The command ``lightning-bsqh``, for who has imported the package already; it lives in ``lightning_bsqh_cli``."""

from lightning_bsqh_cli import main

__all__ = ["main"]

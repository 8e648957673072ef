"""Lightning on one side, one iteration on the other."""

from lightning_bsqh.strategy.strategy import BSQHStrategy

__all__ = ["BSQHStrategy"]

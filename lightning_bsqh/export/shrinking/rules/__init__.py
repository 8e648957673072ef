"""What each kind of call does with channels: one rule per kind."""

from lightning_bsqh.export.shrinking.rules.tables import FUNCTIONS, METHODS, MODULES

__all__ = ["FUNCTIONS", "METHODS", "MODULES"]

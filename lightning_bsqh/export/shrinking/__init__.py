"""Ordinary networks of fewer channels and neurons that give the same."""

from lightning_bsqh.export.shrinking.removal import shrink, shrink_report
from lightning_bsqh.export.shrinking.report import Kept, LayerChange, ShrinkReport

__all__ = ["Kept", "LayerChange", "ShrinkReport", "shrink", "shrink_report"]

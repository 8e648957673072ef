"""Ordinary networks of fewer channels and neurons that give the same."""

from lightning_bsqh.export.shrinking.report import Kept, LayerChange, ShrinkReport
from lightning_bsqh.export.shrinking.shrink import shrink, shrink_report

__all__ = ["Kept", "LayerChange", "ShrinkReport", "shrink", "shrink_report"]

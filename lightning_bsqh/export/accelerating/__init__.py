"""Layers that run faster because of their zeros, where that has been measured."""

from lightning_bsqh.export.accelerating.trying import Acceleration, Tried, accelerate

__all__ = ["Acceleration", "Tried", "accelerate"]

"""Layers with parameters: which channels they read and give, and what they are without some."""

from lightning_bsqh.export.shrinking.layers.grouped import GroupedLayer
from lightning_bsqh.export.shrinking.layers.mixing import Embedding, MixingLayer
from lightning_bsqh.export.shrinking.layers.per_channel import PerChannelLayer, ScaleOrShift

__all__ = ["Embedding", "GroupedLayer", "MixingLayer", "PerChannelLayer", "ScaleOrShift"]

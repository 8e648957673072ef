"""What to_onnx and to_pt2 need of torch."""

from __future__ import annotations

import inspect

import pytest
import torch

HAS_EXPORT = "dynamic_shapes" in inspect.signature(torch.onnx.export).parameters
needs_newer_torch = pytest.mark.skipif(
    not HAS_EXPORT, reason=f"torch {torch.__version__} exports no dynamic shapes to ONNX"
)

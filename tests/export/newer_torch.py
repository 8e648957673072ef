"""What to_onnx and to_pt2 need of torch."""

from __future__ import annotations

import inspect

import pytest
import torch

HAS_EXPORT = "dynamic_shapes" in inspect.signature(torch.onnx.export).parameters
WITHOUT_EXPORT = f"torch {torch.__version__} exports no dynamic shapes to ONNX"
needs_newer_torch = pytest.mark.skipif(not HAS_EXPORT, reason=WITHOUT_EXPORT)

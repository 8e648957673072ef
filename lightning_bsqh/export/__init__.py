"""Out of the sparse network: smaller files, smaller networks, faster runs."""

from lightning_bsqh.export.accelerating import Acceleration, accelerate
from lightning_bsqh.export.measuring import Measurement, measure, table
from lightning_bsqh.export.resizing import resized
from lightning_bsqh.export.runtimes import Exported, to_onnx, to_pt2
from lightning_bsqh.export.shrinking import ShrinkReport, shrink, shrink_report
from lightning_bsqh.export.sparse_file import load_sparse, save_sparse, sparse_bytes

__all__ = [
    "Acceleration",
    "Exported",
    "Measurement",
    "ShrinkReport",
    "accelerate",
    "load_sparse",
    "measure",
    "resized",
    "save_sparse",
    "shrink",
    "shrink_report",
    "sparse_bytes",
    "table",
    "to_onnx",
    "to_pt2",
]

"""Out of the sparse network: smaller files, smaller networks, faster runs."""

from lightning_bsqh.export.shrinking import ShrinkReport, shrink, shrink_report
from lightning_bsqh.export.sparse_file import load_sparse, save_sparse, sparse_bytes

__all__ = ["ShrinkReport", "load_sparse", "save_sparse", "shrink", "shrink_report", "sparse_bytes"]

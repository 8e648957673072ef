"""Out of the sparse network: smaller files, smaller networks, faster runs."""

from lightning_bsqh.export.sparse_file import load_sparse, save_sparse, sparse_bytes

__all__ = ["load_sparse", "save_sparse", "sparse_bytes"]

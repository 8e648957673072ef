"""Callbacks that show, or act on, what the method does."""

from lightning_bsqh.callbacks.augmentation_monitor import AugmentationMonitor
from lightning_bsqh.callbacks.bsqh_monitor import BSQHMonitor
from lightning_bsqh.callbacks.hamiltonian_monitor import HamiltonianMonitor
from lightning_bsqh.callbacks.magnitude_pruning import MagnitudePruning
from lightning_bsqh.callbacks.picture_monitor import PictureMonitor
from lightning_bsqh.callbacks.sparse_checkpoint import SparseCheckpoint
from lightning_bsqh.callbacks.sparsity_monitor import SparsityMonitor

__all__ = [
    "AugmentationMonitor",
    "BSQHMonitor",
    "HamiltonianMonitor",
    "MagnitudePruning",
    "PictureMonitor",
    "SparseCheckpoint",
    "SparsityMonitor",
]

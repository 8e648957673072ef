"""Checkpoints that are sparse files: how a Trainer writes, reads and removes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_bsqh.export.sparse_file import load_sparse, save_sparse
from lightning_bsqh.namespace import _PATH, CheckpointIO, pl

#: What their names end with.
EXTENSION = ".safetensors"


class SparseFileIO(CheckpointIO):
    """Writes and reads paths that end with ``.safetensors`` as sparse files, and leaves all others to another.

    Only the state_dict is written; what is read has nothing else either, so that no training can be resumed from it.

    Args:
        others: What the strategy has used so far.
    """

    def __init__(self, others: CheckpointIO) -> None:
        self.others = others

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        if not _is_sparse(path):
            self.others.save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        _check_ours(place)
        save_sparse(checkpoint["state_dict"], place, overwrite=True)

    @override
    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not _is_sparse(path):
            return self.others.load_checkpoint(path, *args, **kwargs)
        # As a checkpoint of weights has it; where it was in the training, the file does not say.
        version = {"pytorch-lightning_version": pl.__version__, "epoch": 0, "global_step": 0}
        return {"state_dict": load_sparse(path), **version}

    @override
    def remove_checkpoint(self, path: _PATH) -> None:
        self.others.remove_checkpoint(path)

    @override
    def teardown(self) -> None:
        self.others.teardown()


def _is_sparse(path: _PATH) -> bool:
    return str(path).endswith(EXTENSION)


def _check_ours(place: Path) -> None:
    """Raises where a file would be replaced that is no sparse network."""
    if not place.exists():
        return
    try:
        load_sparse(place)
    except (ValueError, FileNotFoundError) as error:
        raise FileExistsError(
            f"{place} exists and is no sparse network, so it stays as it is: choose another dirpath or filename."
        ) from error

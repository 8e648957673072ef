import sys

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from lightning_bsqh import L1, Box, BSQHStrategy, Cardinality
from lightning_bsqh.callbacks import SparseCheckpoint
from lightning_bsqh.callbacks._sparse_files import SparseFileIO
from lightning_bsqh.export import load_sparse
from lightning_bsqh.regularizers import Regularizer
from tests.callbacks.small import SmallModule, loader


def _fit(tmp_path, checkpoint: SparseCheckpoint, regularizer: Regularizer, epochs: int = 4) -> None:
    _trainer(tmp_path, checkpoint, regularizer, epochs).fit(SmallModule(), loader(), loader(1))


def _trainer(tmp_path, checkpoint: SparseCheckpoint, regularizer: Regularizer, epochs: int = 4) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        strategy=BSQHStrategy(regularizer),
        max_epochs=epochs,
        callbacks=[checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


def _zeros(path) -> int:
    state = torch.load(path, weights_only=True)["state_dict"]
    return sum(int((value == 0).sum()) for key, value in state.items() if key.endswith("weight"))


# Of 16 steps numbers 8 to 11 are the ramp: the target holds after epochs 2 and 3, but not after 0 and 1.
TARGET = Cardinality(sparsity=0.5, ramp=(0.5, 0.7), interval=1)


def test_passes_over_networks_that_are_too_dense(tmp_path) -> None:
    # By "score" the first epoch is the best.
    checkpoint = SparseCheckpoint(monitor="score", mode="min", filename="{epoch}", dirpath=tmp_path)
    _fit(tmp_path, checkpoint, TARGET)
    assert checkpoint.best_model_path.endswith("epoch=2.ckpt")
    assert _zeros(checkpoint.best_model_path) == 28
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=2.ckpt"]


def test_a_sparsity_of_ones_own(tmp_path) -> None:
    checkpoint = SparseCheckpoint(sparsity=0.0, monitor="score", mode="min", filename="{epoch}", dirpath=tmp_path)
    _fit(tmp_path, checkpoint, TARGET)
    assert checkpoint.best_model_path.endswith("epoch=0.ckpt")
    never = SparseCheckpoint(sparsity=0.9, monitor="score", dirpath=tmp_path / "never")
    _fit(tmp_path, never, TARGET)
    assert never.best_model_path == ""


def test_a_regularizer_without_a_target(tmp_path) -> None:
    checkpoint = SparseCheckpoint(monitor="score", mode="min", filename="{epoch}", dirpath=tmp_path)
    _fit(tmp_path, checkpoint, L1(rho=1e-6), epochs=2)
    assert checkpoint.best_model_path.endswith("epoch=0.ckpt")


@pytest.mark.parametrize(
    "regularizer",
    [Cardinality(sparsity=0.5, ramp=(0.5, 0.7), interval=1, scope="layer"), Box(-5.0, 5.0, TARGET)],
    ids=["per layer", "in a box"],
)
def test_other_forms_of_the_target(tmp_path, regularizer: Regularizer) -> None:
    checkpoint = SparseCheckpoint(monitor="score", mode="min", filename="{epoch}", dirpath=tmp_path)
    _fit(tmp_path, checkpoint, regularizer)
    assert checkpoint.best_model_path.endswith("epoch=2.ckpt")


def test_by_steps(tmp_path) -> None:
    checkpoint = SparseCheckpoint(every_n_train_steps=3, save_top_k=-1, filename="{step}", dirpath=tmp_path)
    _fit(tmp_path, checkpoint, TARGET)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=12.ckpt", "step=15.ckpt"]


def test_refuses_a_sparsity_out_of_range() -> None:
    with pytest.raises(ValueError, match="sparsity"):
        SparseCheckpoint(sparsity=1.5)


def _trained(tmp_path, **options) -> tuple[L.Trainer, SmallModule, SparseCheckpoint]:
    checkpoint = SparseCheckpoint(monitor="score", mode="min", dirpath=tmp_path, **options)
    trainer, module = _trainer(tmp_path, checkpoint, TARGET), SmallModule()
    trainer.fit(module, loader(), loader(1))
    return trainer, module, checkpoint


def test_sparse_files_hold_the_weights_alone(tmp_path) -> None:
    pytest.importorskip("safetensors")
    trainer, module, checkpoint = _trained(tmp_path, filename="{epoch}", sparse_file=True, save_last=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=2.safetensors", "last.safetensors"]
    assert checkpoint.best_model_path == str(tmp_path / "epoch=2.safetensors")
    best = load_sparse(checkpoint.best_model_path)
    assert sum(int((value == 0).sum()) for name, value in best.items() if name.endswith("weight")) == 28
    # The Trainer reads them where it is told to, and is as it was afterward.
    trainer.validate(module, loader(1), ckpt_path="best", verbose=False)
    assert all(torch.equal(best[name], value) for name, value in module.state_dict().items())
    assert not isinstance(trainer.strategy.checkpoint_io, SparseFileIO)
    SmallModule().load_state_dict(best)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    assert "optimizer_states" in torch.load(tmp_path / "whole.ckpt", weights_only=True)


def test_a_training_cannot_be_resumed_from_a_sparse_file(tmp_path) -> None:
    pytest.importorskip("safetensors")
    trainer, module, checkpoint = _trained(tmp_path, sparse_file=True)
    with pytest.raises(KeyError, match="contains only the model"):
        trainer.fit(module, loader(), loader(1), ckpt_path=checkpoint.best_model_path)


@pytest.mark.parametrize("enable_version_counter", [True, False])
def test_a_sparse_file_takes_no_other_files_place(tmp_path, enable_version_counter: bool) -> None:
    pytest.importorskip("safetensors")
    (tmp_path / "best.safetensors").write_text("mine")
    options = {"filename": "best", "sparse_file": True, "enable_version_counter": enable_version_counter}
    if enable_version_counter:
        _, _, checkpoint = _trained(tmp_path, **options)
        assert checkpoint.best_model_path == str(tmp_path / "best-v1.safetensors")
    else:
        with pytest.raises(FileExistsError, match="is no sparse network"):
            _trained(tmp_path, **options)
    assert (tmp_path / "best.safetensors").read_text() == "mine"


def test_a_sparse_file_that_breaks_off_leaves_the_earlier_one(tmp_path, monkeypatch) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    io = SparseFileIO(TorchCheckpointIO())
    path, state = tmp_path / "best.safetensors", {"a": torch.arange(3.0)}
    io.save_checkpoint({"state_dict": state, "optimizer_states": [1]}, path)

    def breaks_off(tensors, filename, metadata) -> None:
        filename.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors, "save_file", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"state_dict": {"a": torch.ones(3)}}, path)
    assert torch.equal(io.load_checkpoint(path)["state_dict"]["a"], state["a"])
    assert list(tmp_path.iterdir()) == [path]


def test_from_a_configuration_which_gives_every_default() -> None:
    pytest.importorskip("safetensors")
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.Callback, "callback")
    arguments = {"class_path": "lightning_bsqh.callbacks.SparseCheckpoint", "init_args": {"sparse_file": True}}
    made = parser.instantiate_classes(parser.parse_object({"callback": arguments})).callback
    assert (made.sparse_file, made.save_weights_only, made.FILE_EXTENSION) == (True, True, ".safetensors")


def test_sparse_files_are_refused_before_the_training(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning-bsqh\[export\]"):
        SparseCheckpoint(sparse_file=True)
    SparseCheckpoint()

import lightning as L
import pytest
import torch

from lightning_bsqh import L1, Box, BSQHStrategy, Cardinality
from lightning_bsqh.callbacks import SparseCheckpoint
from lightning_bsqh.regularizers import Regularizer
from tests.callbacks.small import SmallModule, loader


def _fit(tmp_path, checkpoint: SparseCheckpoint, regularizer: Regularizer, epochs: int = 4) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        strategy=BSQHStrategy(regularizer),
        max_epochs=epochs,
        callbacks=[checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(SmallModule(), loader(), loader(1))


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

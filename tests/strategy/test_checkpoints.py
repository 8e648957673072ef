"""Checkpoint files are whole or not there; what a machine has not does not block a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_bsqh import BSQHStrategy
from lightning_bsqh.strategy.checkpoints import FORMAT, WholeFileCheckpointIO
from tests.strategy.small_modules import SmallModule, assert_same, weights_of


class Unwilling:
    """Fails while it is written, when half of the file is there."""

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.ckpt"
    io = WholeFileCheckpointIO()
    io.save_checkpoint({"weights": torch.ones(1000)}, path)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"weights": torch.zeros(10**6), "then": Unwilling()}, path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["a.ckpt"]


def test_it_is_written_beside_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename is whole only within a file system, so the file is never made in a folder for temporary ones."""
    opened: list[Path] = []
    open_ = Path.open

    def watched(self: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(self)
        return open_(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watched)
    WholeFileCheckpointIO().save_checkpoint({"a": 1}, str(tmp_path / "a.ckpt"))
    assert [path.parent for path in opened] == [tmp_path]
    assert opened[0].suffix != ".ckpt"
    assert WholeFileCheckpointIO().load_checkpoint(tmp_path / "a.ckpt") == {"a": 1}


def test_the_strategy_uses_it_unless_another_is_given(make_trainer: Any) -> None:
    def used(strategy: BSQHStrategy, **options: Any) -> Any:
        trainer = make_trainer(strategy, **options)
        trainer.strategy.connect(SmallModule())
        return trainer.strategy.checkpoint_io

    assert type(used(BSQHStrategy())) is WholeFileCheckpointIO
    own = type("Own", (TorchCheckpointIO,), {})()
    assert used(BSQHStrategy(checkpoint_io=own)) is own
    assert used(BSQHStrategy(), plugins=[own]) is own


def saved(make_trainer: Any, make_loader: Any, path: Path) -> dict[str, Any]:
    trainer = make_trainer(BSQHStrategy(), max_epochs=1)
    trainer.fit(SmallModule(), make_loader())
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=True)


def test_format(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    checkpoint = saved(make_trainer, make_loader, tmp_path / "a.ckpt")
    assert checkpoint["optimizer_states"][0]["format"] == FORMAT
    checkpoint["optimizer_states"][0]["format"] = FORMAT + 1
    torch.save(checkpoint, tmp_path / "newer.ckpt")
    with pytest.raises(ValueError, match=r"format 2 of a newer lightning-bsqh.*Install the newer one"):
        make_trainer(BSQHStrategy(), max_epochs=2).fit(SmallModule(), make_loader(), ckpt_path=tmp_path / "newer.ckpt")


@pytest.mark.parametrize("device", ["mps:0", "mps", "cuda:97"])
def test_a_generator_that_is_not_here(make_trainer: Any, make_loader: Any, tmp_path: Path, device: str) -> None:
    checkpoint = saved(make_trainer, make_loader, tmp_path / "a.ckpt")
    checkpoint["optimizer_states"][0]["random"]["devices"][device] = torch.zeros(44, dtype=torch.uint8)
    torch.save(checkpoint, tmp_path / "elsewhere.ckpt")
    ends = []
    for name in ("a.ckpt", "elsewhere.ckpt"):
        module = SmallModule()
        trainer = make_trainer(BSQHStrategy(), max_epochs=2)
        if name == "a.ckpt":
            trainer.fit(module, make_loader(), ckpt_path=tmp_path / name)
        else:
            with pytest.warns(UserWarning, match=f"generator of {device}, which is not here"):
                trainer.fit(module, make_loader(), ckpt_path=tmp_path / name)
        ends.append(weights_of(module))
    assert_same(*ends)

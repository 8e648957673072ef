"""A folder that takes the place of a checkpoint, as sharded trainings write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_bsqh.strategy.shard_checkpoints import put_in_place


def fill(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "meta.pt").write_text(text)
    return folder


@pytest.mark.parametrize("earlier", ["nothing", "a folder", "a file", "a link to a folder", "left from before"])
def test_what_had_the_name_before(tmp_path: Path, earlier: str) -> None:
    path, beside = tmp_path / "last.ckpt", fill(tmp_path / ".last.ckpt.part", "new")
    elsewhere = fill(tmp_path / "elsewhere", "another")
    if earlier == "a file":
        path.write_text("old")
    elif earlier == "a link to a folder":
        path.symlink_to(elsewhere)
    elif earlier != "nothing":
        fill(path, "old")
    if earlier == "left from before":
        fill(tmp_path / ".last.ckpt.before", "older")
    put_in_place(beside, path)
    assert (path / "meta.pt").read_text() == "new"
    assert not path.is_symlink()
    assert (elsewhere / "meta.pt").read_text() == "another"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "last.ckpt"]


def test_the_earlier_one_is_there_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, beside = fill(tmp_path / "last.ckpt", "old"), fill(tmp_path / ".last.ckpt.part", "new")
    rename, found = Path.rename, []

    def watched(self: Path, target: Path) -> Path:
        found.append(sorted((p / "meta.pt").read_text() for p in tmp_path.iterdir()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    put_in_place(beside, path)
    assert found == [["new", "old"], ["new", "old"]]

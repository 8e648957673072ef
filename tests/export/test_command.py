from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

pytest.importorskip("jsonargparse")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from lightning_bsqh.export import load_sparse, resized, save_sparse
from lightning_bsqh.export.before_after import KEPT, before_after, keep, read_kept
from lightning_bsqh.export.command import main
from lightning_bsqh.export.measuring import aligned
from lightning_bsqh.export.run_folder import example_inputs, load_run, metrics_of_test
from lightning_bsqh.zoo import ImageClassifier, SmallLeNet
from tests.export.newer_torch import needs_newer_torch
from tests.export.shrinking.made_networks import zero_out

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 1},
    "model": {
        "class_path": "lightning_bsqh.zoo.ImageClassifier",
        "init_args": {"network": {"class_path": "lightning_bsqh.zoo.SmallLeNet"}},
    },
    "data": {"class_path": "lightning_bsqh.zoo.data.DigitsDataModule", "init_args": {"batch_size": 64}},
}


@pytest.fixture
def run_folder(tmp_path: Path, make_trainer) -> Path:
    """As ``lightning-bsqh fit`` leaves it."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    model = ImageClassifier(zero_out(SmallLeNet(), 0.5, 0.0))
    trainer: L.Trainer = make_trainer()
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "checkpoints" / "best.ckpt")
    return folder


def test_shrinks_and_writes_a_sparse_file(run_folder: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "digits.safetensors"
    main([str(run_folder), "--shrink", "--to", "safetensors", "--output", str(file)])
    printed = capsys.readouterr().out
    for word in ("parameters", "not zero", "multiply-adds", "milliseconds", "test_accuracy", "filters", str(file)):
        assert word in printed
    (accuracies,) = (line.split()[1:] for line in printed.splitlines() if line.startswith("test_accuracy"))
    assert accuracies[0] == accuracies[1]
    loaded = load_run(run_folder)
    small = resized(ImageClassifier(SmallLeNet()), load_sparse(file)).eval()
    x = torch.rand(3, 1, 8, 8)
    assert torch.allclose(loaded.model(x), small(x), atol=1e-5)
    assert metrics_of_test(loaded, small).keys() == {"test_loss", "test_accuracy"}


def test_a_checkpoint_may_be_a_sparse_file(run_folder: Path, capsys) -> None:
    loaded = load_run(run_folder)
    loaded.checkpoint.unlink()
    file = loaded.checkpoint.with_suffix(".safetensors")
    save_sparse(loaded.model, file)
    again = load_run(run_folder)
    assert again.checkpoint == file
    assert all(torch.equal(p, q) for p, q in zip(loaded.model.parameters(), again.model.parameters(), strict=True))
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="cannot be read as a sparse network"):
        load_run(run_folder)


@needs_newer_torch
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_writes_for_other_runtimes(run_folder: Path, tmp_path: Path, capsys, kind: str) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / f"digits.{kind}"
    main([str(run_folder), "--to", kind, "--output", str(file)])
    assert f"{file}  {file.stat().st_size:,} bytes, any batch size" in capsys.readouterr().out


def test_only_prints_without_an_output(run_folder: Path, capsys) -> None:
    before = sorted(run_folder.rglob("*"))
    main([str(run_folder)])
    assert "38,282" in capsys.readouterr().out
    assert sorted(run_folder.rglob("*")) == before


def test_keeps_the_table_for_the_report(run_folder: Path, capsys) -> None:
    main([str(run_folder), "--shrink", "--keep-table"])
    rows = read_kept(run_folder)
    assert aligned(rows) in capsys.readouterr().out
    assert rows[0] == ["", "trained", "shrunk", "ratio"]
    again = before_after(run_folder, seconds=0.05)
    times = [row[0] for row in rows].index("milliseconds")
    assert rows[:times] + rows[times + 1 :] == again[:times] + again[times + 1 :]
    keep(again, run_folder)
    assert read_kept(run_folder) == again


@pytest.mark.parametrize(
    "content", ["a,b\n1,2\n", "", '"', ",trained\nragged\n", ",trained\n" + "x,y\n" * 10_000, "\x00"]
)
def test_a_file_of_another_kind_is_no_table_and_is_kept(run_folder: Path, capsys, content: str) -> None:
    (run_folder / KEPT).write_text(content, encoding="utf-8")
    assert read_kept(run_folder) == []
    with pytest.raises(SystemExit):
        main([str(run_folder), "--keep-table"])
    assert "is no table of lightning-bsqh" in capsys.readouterr().err
    assert (run_folder / KEPT).read_text(encoding="utf-8") == content


def test_bad_arguments_end_with_a_sentence(run_folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine").write_text("mine")
    for arguments, words in [
        ([str(tmp_path)], "no run folder"),
        ([str(run_folder), "--to", "onnx"], "go together"),
        ([str(run_folder), "--output", "x"], "go together"),
        ([str(run_folder), "--to", "onnx", "--output", str(tmp_path / "mine")], "exists"),
        ([str(run_folder), "--checkpoint", str(tmp_path / "none.ckpt")], "no checkpoint"),
        ([str(run_folder), "--checkpoint", str(tmp_path / "mine")], "cannot be read as a checkpoint"),
    ]:
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 1
        assert words in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(SystemExit) as error:
        main([str(run_folder), "--to", "pickle"])
    assert error.value.code == 2


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("content", [b"", b"half a file", b"PK\x03\x04 torn", b"\x80\x02."])
def test_bytes_that_are_no_checkpoint(run_folder: Path, content: bytes) -> None:
    (run_folder / "checkpoints" / "best.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"best\.ckpt cannot be read as a checkpoint"):
        load_run(run_folder)


def test_nothing_in_a_checkpoint_is_executed(run_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": Evil()}}, run_folder / "checkpoints" / "best.ckpt")
    with pytest.raises(ValueError, match="without executing"):
        load_run(run_folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"network": 3}}, "names no class"),
        ({"model": {"class_path": "lightning_bsqh.zoo.Nothing"}}, "cannot be made again"),
        ({"model": {"class_path": "os.system", "init_args": {"command": "touch executed"}}}, "cannot be made again"),
        ({"data": {"class_path": "os.system"}}, "cannot be made again"),
    ],
)
def test_configurations_that_name_no_module(run_folder: Path, change, words: str) -> None:
    (run_folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        load_run(run_folder)


def test_configuration_that_is_none(run_folder: Path) -> None:
    for content in ("[", "- 1", "", "!!python/object/apply:os.system [true]"):
        (run_folder / "config.yaml").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"config\.yaml"):
            load_run(run_folder)


def test_checkpoint_of_another_network(run_folder: Path) -> None:
    other = {
        **CONFIG,
        "model": {**CONFIG["model"], "init_args": {"network": {"class_path": "lightning_bsqh.zoo.LeNet5"}}},
    }
    (run_folder / "config.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    with pytest.raises(ValueError, match="do not fit the model"):
        load_run(run_folder)


class Direct(ImageClassifier):
    """Its test goes around its forward."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.network(batch[0]).sum())


def test_a_test_that_goes_around_the_forward_says_nothing_of_the_smaller_network(run_folder: Path) -> None:
    config = {**CONFIG, "model": {**CONFIG["model"], "class_path": "tests.export.test_command.Direct"}}
    (run_folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    loaded = load_run(run_folder)
    assert metrics_of_test(loaded, SmallLeNet()) == {}
    assert "forward" not in vars(loaded.model)


def test_without_data_the_module_may_bring_an_example(run_folder: Path) -> None:
    config = {name: value for name, value in CONFIG.items() if name != "data"}
    (run_folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    loaded = load_run(run_folder)
    with pytest.raises(ValueError, match="example_input_array"):
        example_inputs(loaded, 1)
    loaded.model.example_input_array = torch.zeros(4, 1, 8, 8)
    assert example_inputs(loaded, 2)[0].shape == (2, 1, 8, 8)
    assert metrics_of_test(loaded, None) == {}

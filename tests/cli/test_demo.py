import sys

import pytest
import torch

pytest.importorskip("jsonargparse")
pytest.importorskip("rich")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from lightning_bsqh.cli import demo
from lightning_bsqh.cli.main import main
from lightning_bsqh.report.metrics import read_metrics
from tests.wandb_files import final_state


@pytest.fixture(autouse=True)
def bare_command_line(monkeypatch) -> None:
    """LightningCLI warns where it is given arguments beside those typed, here pytest's."""
    monkeypatch.setattr(sys, "argv", ["lightning-bsqh"])


@pytest.fixture
def without_wandb(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)


@pytest.mark.usefixtures("without_wandb")
def test_trains_tests_and_leaves_its_results(tmp_path, capsys) -> None:
    result = demo.run_demo(tmp_path / "run", seed=1, epochs=3, progress_bar=False)
    assert "pip install wandb" in capsys.readouterr().out
    assert result.test_accuracy > 0.5
    assert result.sparsity == pytest.approx(0.9, abs=1e-4)
    assert list(result.zeros) == [f"network.{name}" for name in ("conv1", "conv2", "fc1", "fc2")]
    assert result.accepted_trials + result.skipped <= 60
    assert set(result.files) == {"metrics", "checkpoint", "report"}
    for path in result.files.values():
        assert path.is_file()
        assert path.is_relative_to(tmp_path / "run")
    # The checkpoint is the network that was counted.
    state = torch.load(result.files["checkpoint"], weights_only=True)["state_dict"]
    for layer, (zeros, size) in result.zeros.items():
        weight = state[f"{layer}.weight"]
        assert (int((weight == 0).sum()), weight.numel()) == (zeros, size)
    # The file tells the same as the table, all iterations and not only those before the best checkpoint.
    metrics = read_metrics(result.files["metrics"])
    assert len(metrics["bsqh/accepted"][0]) == 60
    assert sum(metrics["bsqh/accepted"][1]) == result.accepted_trials
    assert sum(metrics["bsqh/trials"][1]) == result.accepted_trials + result.rejected_trials
    assert metrics["bsqh/epsilon"][1][-1] == pytest.approx(result.epsilon, rel=1e-6)
    assert metrics["test_accuracy"][1] == [pytest.approx(result.test_accuracy)]
    # The report has the outcome, the settings, and a mask of each layer.
    report = result.files["report"].read_text(encoding="utf-8")
    for text in (f"{100 * result.test_accuracy:.2f} %", "lightning_bsqh.Cardinality", "network.fc2.weight, 10 × 64"):
        assert text in report
    # The table of lightning-bsqh export: the same network, the same test.
    cells = {row[0]: row[1:] for row in result.table}
    assert cells["parameters"][0] == "38,282"
    assert cells["test_accuracy"][:2] == [f"{result.test_accuracy:.4f}"] * 2
    for row in result.table[1:]:
        assert all(f">{cell}</td>" in report for cell in row)


@pytest.mark.usefixtures("without_wandb")
def test_again_into_the_same_folder(tmp_path) -> None:
    first = demo.run_demo(tmp_path, epochs=2, progress_bar=False)
    second = demo.run_demo(tmp_path, epochs=1, progress_bar=False)
    assert first.files == second.files
    assert len(read_metrics(second.files["metrics"])["bsqh/epsilon"][0]) == 20
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["best.ckpt"]


def test_offline_run_of_wandb(tmp_path, capsys) -> None:
    pytest.importorskip("wandb")
    result = demo.run_demo(tmp_path, epochs=1, progress_bar=False)
    folder = result.files["W&B offline run"]
    assert folder.parent == tmp_path / "wandb"
    assert len(list(folder.glob("run-*.wandb"))) == 1
    demo.print_result(result, seed=0)
    assert f"wandb sync {folder}" in capsys.readouterr().out
    run = final_state(folder)
    assert run["config"]["trainer"]["strategy"]["class_path"] == "lightning_bsqh.BSQHStrategy"
    assert {"pictures/sparsity", "pictures/layers", "masks/network.conv1", "weights/network.fc1"} <= set(run["summary"])


@pytest.mark.usefixtures("without_wandb")
def test_command_shows_bar_table_and_files(tmp_path, monkeypatch, capsys) -> None:
    # The width that rich takes where there is no terminal.
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # it would last beyond this test
    main(["demo", "--seed", "2", "--output", str(tmp_path), "--epochs", "1"])
    printed = capsys.readouterr().out
    for words in ("train_loss", "ε:", "zeros:", "trials:"):  # the bar
        assert words in printed
    for words in ("seed 2", "test accuracy", "zeros in conv1", "accepted trials", "rejected trials", "final ε"):
        assert words in printed
    for name in ("metrics.csv", "checkpoints/best.ckpt", "report.html"):
        assert str(tmp_path / name) in printed
    assert f"Open it in any browser, no network needed: {(tmp_path / 'report.html').as_uri()}" in printed
    assert f"lightning-bsqh export {tmp_path} --shrink" in printed
    assert printed.splitlines()[-1].startswith("test_accuracy")


@pytest.mark.usefixtures("without_wandb")
def test_without_jinja2_there_is_no_report(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = demo.run_demo(tmp_path, epochs=1, progress_bar=False)
    assert "report" not in result.files
    assert 'pip install "lightning-bsqh[report]"' in capsys.readouterr().out


@pytest.mark.usefixtures("without_wandb")
def test_without_safetensors_there_is_no_table(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    result = demo.run_demo(tmp_path, epochs=1, progress_bar=False)
    assert result.table == []
    assert 'pip install "lightning-bsqh[export]"' in capsys.readouterr().out
    demo.print_result(result, seed=0)
    assert "Without its zeros" not in result.files["report"].read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--seed", "x"], ["--unknown"]])
def test_refuses_bad_arguments(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as error:
        main(["demo", *arguments])
    assert error.value.code == 2
    assert "lightning-bsqh demo" in capsys.readouterr().err


def test_missing_packages_are_named_before_the_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(SystemExit, match="The demo needs rich: pip install"):
        main(["demo", "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_folder_with_the_users_files_is_left_alone(tmp_path) -> None:
    for name in ("config.yaml", "report.html", "thesis.tex"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit, match="holds files that no demo has left"):
        main(["demo", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="is a file: name a folder"):
        main(["demo", "--output", str(tmp_path / "thesis.tex")])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("config.yaml", "report.html", "thesis.tex"), "mine"
    )


@pytest.mark.usefixtures("without_wandb")
def test_a_link_among_an_earlier_demos_files_is_not_followed(tmp_path) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    demo.run_demo(tmp_path / "run", epochs=1, progress_bar=False)
    for name in ("config.yaml", "report.html", "export.csv"):
        (tmp_path / "run" / name).unlink()
        (tmp_path / "run" / name).symlink_to(tmp_path / "precious.txt")
    demo.run_demo(tmp_path / "run", epochs=1, progress_bar=False)
    assert (tmp_path / "precious.txt").read_text() == "precious"
    assert not (tmp_path / "run" / "report.html").is_symlink()


@pytest.mark.usefixtures("without_wandb")
def test_counts_the_whole_training(tmp_path, monkeypatch) -> None:
    # With the worst checkpoint for the best one the test goes back to an epoch before the last.
    recipe = tmp_path / "recipe.yaml"
    text = demo.recipe_path("digits_lenet5.yaml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("monitor: val_loss", "monitor: val_loss\n        mode: max"), encoding="utf-8")
    monkeypatch.setattr(demo, "recipe_path", lambda name: recipe)
    result = demo.run_demo(tmp_path / "run", epochs=5, progress_bar=False)
    assert torch.load(result.files["checkpoint"], weights_only=True)["global_step"] < 100
    assert sum(read_metrics(result.files["metrics"])["bsqh/accepted"][1]) == result.accepted_trials

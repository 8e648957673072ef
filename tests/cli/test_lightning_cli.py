import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("jsonargparse")

from lightning_bsqh import BSQHStrategy
from lightning_bsqh.cli import lightning_cli as module
from lightning_bsqh.cli.lightning_cli import BSQHCLI
from lightning_bsqh.cli.main import main
from tests.zoo.made_data import make_mnist


@pytest.fixture(autouse=True)
def bare_command_line(monkeypatch) -> None:
    """LightningCLI warns where it is given arguments beside those typed, here pytest's."""
    monkeypatch.setattr(sys, "argv", ["lightning-bsqh"])


@pytest.fixture
def arguments(tmp_path, monkeypatch) -> list[str]:
    """A complete command line for MNIST in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    make_mnist(tmp_path / "made")
    return [
        "--model", "lightning_bsqh.zoo.ImageClassifier", "--model.network", "lightning_bsqh.zoo.LeNet5",
        "--data", "lightning_bsqh.zoo.data.MNISTDataModule", "--data.root", str(tmp_path / "made"),
        "--data.batch_size", "10", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
        "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
        "--trainer.logger", "false", "--trainer.enable_checkpointing", "false",
    ]  # fmt: skip


def test_fit_with_the_string(arguments, capsys) -> None:
    cli = BSQHCLI(["fit", *arguments, "--trainer.strategy", "bsqh"])
    assert isinstance(cli.trainer.strategy, BSQHStrategy)
    printed = capsys.readouterr().out
    assert "test_accuracy" in printed
    assert "sparsity       0.9000 (6,147 weights are left)" in printed


def test_options_of_the_strategy(arguments) -> None:
    arguments += ["--trainer.strategy", "lightning_bsqh.BSQHStrategy", "--trainer.strategy.eta", "0.01"]
    arguments += ["--trainer.strategy.augmentation", "lightning_bsqh.Backtracking"]
    arguments += ["--trainer.strategy.augmentation.sigma", "3.0", "--trainer.strategy.regularizer", "lightning_bsqh.L1"]
    cli = BSQHCLI(["fit", *arguments, "--trainer.strategy.regularizer.rho", "1e-6"])
    optimizer = cli.trainer.optimizers[0]
    assert optimizer.eta == 0.01
    assert optimizer.augmentation.sigma == 3.0
    assert optimizer.regularizer.rho == 1e-6


def test_regularizers_by_name(arguments, capsys, tmp_path) -> None:
    by_name = {
        "network.conv*": {"class_path": "lightning_bsqh.GroupL0", "init_args": {"rho": 1e-4}},
        "network.fc[12]": {"class_path": "lightning_bsqh.Cardinality", "init_args": {"sparsity": 0.8}},
        "network.fc3.bias": {"class_path": "lightning_bsqh.L2"},
    }
    strategy = {"class_path": "lightning_bsqh.BSQHStrategy", "init_args": {"regularizer": by_name}}
    config = tmp_path / "by_name.yaml"
    config.write_text(yaml.safe_dump({"trainer": {"strategy": strategy}}), encoding="utf-8")
    arguments = ["fit", *arguments, "--config", str(config)]
    with pytest.raises(SystemExit):
        BSQHCLI([*arguments, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["trainer"]["strategy"]["init_args"]["regularizer"]
    assert {name: value["class_path"] for name, value in printed.items()} == {
        name: value["class_path"] for name, value in by_name.items()
    }
    assert printed["network.fc[12]"]["init_args"]["sparsity"] == 0.8
    network, optimizer = (cli := BSQHCLI(arguments)).model.network, cli.trainer.optimizers[0]
    weights = [network.fc1.weight, network.fc2.weight]
    assert sum(int((w == 0).sum()) for w in weights) == round(0.8 * sum(w.numel() for w in weights))
    assert list(optimizer.regularized_weights()) == [
        f"network.{name}" for name in ("conv1", "conv2", "fc1", "fc2", "fc3")
    ]
    assert optimizer.regularized_weights()["network.fc3"][0] is network.fc3.bias


def test_validate_test_and_predict(arguments) -> None:
    for subcommand in ("validate", "test", "predict"):
        cli = BSQHCLI([subcommand, *arguments, "--data.val_images", "10", "--trainer.strategy", "bsqh"])
        assert cli.trainer.state.finished
    assert not cli.trainer.optimizers


def test_runs_are_alike_by_default(arguments) -> None:
    first = BSQHCLI(["fit", *arguments, "--trainer.strategy", "bsqh"]).model.network.fc3.weight
    second = BSQHCLI(["fit", *arguments, "--trainer.strategy", "bsqh"]).model.network.fc3.weight
    other = BSQHCLI(
        ["fit", *arguments, "--trainer.strategy", "bsqh", "--seed_everything", "1"]
    ).model.network.fc3.weight
    assert first.equal(second)
    assert not first.equal(other)


def test_another_strategy_has_its_sparsity_printed_too(arguments, capsys) -> None:
    BSQHCLI(["fit", *arguments, "--optimizer", "Adam"])
    assert "sparsity       0.0000" in capsys.readouterr().out


def test_demo_goes_to_the_demo(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr("lightning_bsqh.cli.demo.run", seen.append)
    main(["demo", "--seed", "3"])
    assert [(options.seed, options.output, options.epochs) for options in seen] == [(3, Path("runs/demo"), None)]


def test_help_names_the_demo(capsys) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    assert error.value.code == 0
    assert "lightning-bsqh demo" in " ".join(capsys.readouterr().out.split())


def test_takes_the_typed_arguments(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(module, "BSQHCLI", seen.append)
    monkeypatch.setattr(sys, "argv", ["lightning-bsqh", "fit"])
    main()
    assert seen == [None]  # LightningCLI reads them itself


@pytest.mark.parametrize("missing", ["jsonargparse", "typeshed_client"])
def test_without_jsonargparse(monkeypatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit, match=r'pip install "jsonargparse\[signatures\]"'):
        main(["fit"])


def test_layers_and_sweep(arguments, capsys) -> None:
    arguments += ["--trainer.strategy", "lightning_bsqh.BSQHStrategy", "--trainer.strategy.sweep", "gauss-seidel"]
    arguments += ["--trainer.strategy.layers", '["network.conv*"]']
    cli = BSQHCLI(["fit", *arguments])
    assert [group["name"] for group in cli.trainer.optimizers[0].param_groups][:2] == ["network.conv1", "network.conv2"]
    assert cli.trainer.optimizers[0].sweep == "gauss-seidel"
    with pytest.raises(SystemExit):
        BSQHCLI(["fit", *arguments, "--print_config"])
    assert "sweep: gauss-seidel" in capsys.readouterr().out


def test_finds_modules_in_the_present_folder(arguments, tmp_path, monkeypatch) -> None:
    (tmp_path / "module_of_a_user.py").write_text(
        "from lightning_bsqh.zoo import ImageClassifier\n\n\nclass Mine(ImageClassifier):\n    pass\n", encoding="utf-8"
    )
    # As the installed command has it: without the present folder. Restored after the test.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    arguments[arguments.index("lightning_bsqh.zoo.ImageClassifier")] = "module_of_a_user.Mine"
    main(["fit", *arguments, "--trainer.strategy", "bsqh"])
    assert sys.path[0] == str(tmp_path)
    main(["fit", *arguments, "--trainer.strategy", "bsqh"])
    assert sys.path.count(str(tmp_path)) == 1


def test_a_small_loss_is_not_printed_as_zero(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning.pytorch.Trainer.test", lambda *args, **options: [{"test_loss": 4.76e-5}])
    arguments = ["fit", "--model", "lightning_bsqh.zoo.FunctionRegressor", "--model.network"]
    arguments += ["lightning_bsqh.zoo.ResidualEuler", "--data", "lightning_bsqh.zoo.data.SineDataModule"]
    arguments += ["--trainer.max_epochs", "1", "--trainer.strategy", "bsqh", "--trainer.accelerator", "cpu"]
    arguments += ["--trainer.precision", "64-true", "--trainer.logger", "false"]
    BSQHCLI([*arguments, "--trainer.enable_checkpointing", "false", "--trainer.enable_progress_bar", "false"])
    assert "test_loss      4.76e-05" in capsys.readouterr().out

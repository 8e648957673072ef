import copy
import sys

import pytest
import yaml

pytest.importorskip("jsonargparse")

from lightning_bsqh.cli import BSQHCLI
from lightning_bsqh.demo import recipe_path
from tests.zoo.made_data import make_cifar10, make_mnist

NAMES = sorted(path.name for path in recipe_path("digits_lenet5.yaml").parent.glob("*.yaml"))
#: Those with regularisers by layers' names; all others demand a sparsity.
BY_NAME = ["mnist_lenet5_groups.yaml", "mnist_lenet5_ternary.yaml"]


@pytest.fixture(autouse=True)
def bare_command_line(monkeypatch) -> None:
    """LightningCLI warns where it is given arguments beside those typed, here pytest's."""
    monkeypatch.setattr(sys, "argv", ["lightning-bsqh"])


def _recipe(name: str) -> dict:
    return yaml.safe_load(recipe_path(name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(tmp_path, monkeypatch, capsys, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--config", str(recipe_path(name)), "--trainer.max_steps", "2", "--data.batch_size", "10"]
    arguments += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    if name not in BY_NAME:
        arguments += ["--trainer.strategy.regularizer.sparsity", "0.8"]
    if name.startswith("mnist"):
        make_mnist(tmp_path / "made")
        arguments += ["--data.root", str(tmp_path / "made")]
    elif name.startswith("cifar10"):
        pytest.importorskip("PIL")
        make_cifar10(tmp_path / "made")
        arguments += ["--data.root", str(tmp_path / "made"), "--data.train_images", "30"]
    else:
        pytest.importorskip("sklearn")
    cli = BSQHCLI(arguments)
    assert cli.trainer.global_step == 2
    printed = capsys.readouterr().out
    assert "test_accuracy" in printed
    optimizer = cli.trainer.optimizers[0]
    # The target, reached to the weight even in so short a training.
    assert optimizer.meets_constraint()
    assert f"sparsity       {optimizer.sparsity():.4f}" in printed
    if name not in BY_NAME:
        weights = [w for layer in optimizer.regularized_weights().values() for w in layer]
        assert sum(int((w == 0).sum()) for w in weights) == round(0.8 * sum(w.numel() for w in weights))
        assert "sparsity       0.8000" in printed
    (folder,) = (tmp_path / "runs").glob("*/version_0")
    assert {"config.yaml", "metrics.csv"} <= {path.name for path in folder.iterdir()}


def test_mnist_and_cifar10_train_with_the_same_options() -> None:
    trainers = []
    for name in ("mnist_lenet5.yaml", "cifar10_resnet8.yaml"):
        trainer = copy.deepcopy(_recipe(name)["trainer"])
        # What belongs to the task: the budget and the name of the folder.
        del trainer["max_epochs"], trainer["logger"]
        trainers.append(trainer)
    assert trainers[0] == trainers[1]
    assert trainers[0]["strategy"]["init_args"] == {
        "regularizer": {"class_path": "lightning_bsqh.Cardinality", "init_args": {"sparsity": 0.95}}
    }


@pytest.mark.parametrize("name", NAMES)
def test_says_at_the_top_how_to_use_it(name: str) -> None:
    text = recipe_path(name).read_text(encoding="utf-8")
    head = text[: text.index("seed_everything:")]
    assert f"lightning-bsqh fit --config recipes/{name}" in head
    assert name in BY_NAME or "--trainer.strategy.regularizer.sparsity" in head
    assert "on two cores" in head


def test_groups_are_filters_and_neurons_but_the_last() -> None:
    by_name = _recipe("mnist_lenet5_groups.yaml")["trainer"]["strategy"]["init_args"]["regularizer"]
    assert list(by_name) == ["network.conv*", "network.fc[12]"]
    assert {regularizer["init_args"]["groups"] for regularizer in by_name.values()} == {"output"}
    assert min(regularizer["init_args"]["sparsity"] for regularizer in by_name.values()) >= 0.5


def test_ternary_has_three_levels_for_every_layer() -> None:
    by_name = _recipe("mnist_lenet5_ternary.yaml")["trainer"]["strategy"]["init_args"]["regularizer"]
    assert list(by_name) == [f"network.{layer}" for layer in ("conv1", "conv2", "fc1", "fc2", "fc3")]
    for regularizer in by_name.values():
        low, middle, high = regularizer["init_args"]["levels"]
        assert low == -high < middle == 0.0

import copy
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("jsonargparse")

from lightning_bsqh import BSQHOptimizer, Cardinality
from lightning_bsqh.callbacks import MagnitudePruning
from lightning_bsqh.cli.lightning_cli import BSQHCLI
from lightning_bsqh.cli.recipes import recipe_folder, recipe_path
from tests.zoo.made_data import make_cifar10, make_mnist

NAMES = sorted(path.name for path in recipe_folder().glob("*.yaml"))
#: Those that demand a sparsity of the strategy, by ``--trainer.strategy.regularizer.sparsity``.
SPARSE = [
    "cifar10_resnet18.yaml",
    "cifar10_resnet20.yaml",
    "cifar10_resnet8.yaml",
    "digits_full_batch.yaml",
    "digits_lenet5.yaml",
    "mnist_lenet5.yaml",
]
#: Those that train with Adam.
ADAM = ["mnist_lenet5_adam.yaml", "mnist_lenet5_pruning.yaml"]
FULL_BATCH = ["digits_full_batch.yaml", "residual_euler.yaml"]


@pytest.fixture(autouse=True)
def bare_command_line(monkeypatch) -> None:
    """LightningCLI warns where it is given arguments beside those typed, here pytest's."""
    monkeypatch.setattr(sys, "argv", ["lightning-bsqh"])


def _recipe(name: str) -> dict:
    return yaml.safe_load(recipe_path(name).read_text(encoding="utf-8"))


def _two_steps(name: str, folder: Path) -> list[str]:
    """The command line for two steps on data made in ``folder``, in the format of the real files."""
    arguments = ["fit", "--config", str(recipe_path(name)), "--trainer.accelerator", "cpu"]
    arguments += ["--trainer.enable_progress_bar", "false"]
    # Full-batch recipes have all data in one batch, so that an epoch is a step.
    arguments += ["--trainer.max_epochs", "2"] if name in FULL_BATCH else ["--trainer.max_steps", "2"]
    if name not in FULL_BATCH:
        arguments += ["--data.batch_size", "10"]
    if name in SPARSE:
        arguments += ["--trainer.strategy.regularizer.sparsity", "0.8"]
    if name.startswith("mnist"):
        make_mnist(folder)
        arguments += ["--data.root", str(folder)]
    elif name.startswith("cifar10"):
        pytest.importorskip("PIL")
        make_cifar10(folder)
        arguments += ["--data.root", str(folder), "--data.train_images", "30"]
    elif name.startswith("digits"):
        pytest.importorskip("sklearn")
    return arguments


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(tmp_path, monkeypatch, capsys, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    cli = BSQHCLI(_two_steps(name, tmp_path / "made"))
    assert cli.trainer.global_step == 2
    printed = capsys.readouterr().out
    assert ("test_loss" if name == "residual_euler.yaml" else "test_accuracy") in printed
    optimizer = cli.trainer.optimizers[0]
    assert isinstance(optimizer, BSQHOptimizer) == (name not in ADAM)
    if isinstance(optimizer, BSQHOptimizer):
        assert optimizer.iterations == 2
        # The target, reached to the weight even in so short a training.
        assert optimizer.meets_constraint()
        assert f"sparsity       {optimizer.sparsity():.4f}" in printed
    if name in SPARSE:
        weights = [w for layer in optimizer.regularized_weights().values() for w in layer]
        assert sum(int((w == 0).sum()) for w in weights) == round(0.8 * sum(w.numel() for w in weights))
        assert "sparsity       0.8000" in printed
    if name == "mnist_lenet5_pruning.yaml":
        assert "sparsity       0.9500" in printed
    (folder,) = (tmp_path / "runs").glob("*/version_0")
    assert {"config.yaml", "metrics.csv"} <= {path.name for path in folder.iterdir()}
    # A folder of its own, so that runs of two recipes do not mix.
    assert folder.parent.name == name.removesuffix(".yaml")


@pytest.mark.parametrize("name", NAMES)
def test_print_config(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        BSQHCLI(["fit", "--config", str(recipe_path(name)), "--print_config"])
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["class_path"] == _recipe(name)["model"]["class_path"]
    assert printed["trainer"]["max_epochs"] == _recipe(name)["trainer"]["max_epochs"]


@pytest.mark.parametrize("name", ["cifar10_resnet18.yaml", "cifar10_resnet20.yaml"])
def test_the_resnets_share_the_options_of_the_small_ones(name: str) -> None:
    first, second = (copy.deepcopy(_recipe(n)["trainer"]) for n in ("mnist_lenet5.yaml", name))
    for trainer in (first, second):
        del trainer["max_epochs"], trainer["logger"], trainer["strategy"]["init_args"]["regularizer"]["init_args"]
    assert first == second


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("mnist")])
def test_all_of_mnist_can_be_compared(name: str) -> None:
    recipe, reference = _recipe(name), _recipe("mnist_lenet5.yaml")
    assert recipe["data"] == reference["data"]
    assert recipe["seed_everything"] == reference["seed_everything"]
    assert recipe["trainer"]["max_epochs"] == reference["trainer"]["max_epochs"]
    assert recipe["model"]["init_args"]["network"] == reference["model"]["init_args"]["network"]


def test_pruning_is_adam_with_one_callback_and_the_sparsity_and_ramp_of_mnist_lenet5() -> None:
    adam, pruning = _recipe("mnist_lenet5_adam.yaml"), _recipe("mnist_lenet5_pruning.yaml")
    # Each has the learning rate that suits it.
    for recipe in (adam, pruning):
        del recipe["model"]["init_args"]["lr"]
    assert adam["model"] == pruning["model"]
    callbacks = pruning["trainer"]["callbacks"]
    assert callbacks[1:] == adam["trainer"]["callbacks"]
    options = callbacks[0]["init_args"]
    demanded = _recipe("mnist_lenet5.yaml")["trainer"]["strategy"]["init_args"]["regularizer"]["init_args"]
    assert options["sparsity"] == demanded["sparsity"]
    assert tuple(options["ramp"]) == Cardinality(**demanded).ramp
    assert MagnitudePruning(**options).ramp == tuple(options["ramp"])


def test_plain_is_the_published_scheme() -> None:
    options = _recipe("mnist_lenet5_plain.yaml")["trainer"]["strategy"]["init_args"]
    assert options["metric"] == "euclidean"
    assert options["regularizer"]["class_path"] == "lightning_bsqh.L0"
    assert options["augmentation"]["class_path"] == "lightning_bsqh.Backtracking"
    assert options["augmentation"]["init_args"]["schedule"] is False


@pytest.mark.parametrize("name", FULL_BATCH)
def test_full_batch_recipes_have_all_data_in_one_batch(name: str) -> None:
    cli = BSQHCLI(["--config", str(recipe_path(name))], run=False)
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    assert len(cli.datamodule.train_dataloader()) == 1


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
    assert name not in SPARSE or "--trainer.strategy.regularizer.sparsity" in head
    assert "on two cores" in " ".join(head.replace("#", " ").split())


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

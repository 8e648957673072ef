"""An option that is wrong ends the command with a sentence; a fault of the user's program shows where it is."""

import sys
from importlib.metadata import version

import pytest
from packaging.version import Version

pytest.importorskip("jsonargparse")

from lightning_bsqh.cli.errors import SHOW_TRACEBACKS, in_short, sentence_for
from lightning_bsqh.cli.main import main
from tests.zoo.made_data import make_mnist

BORING = ["fit", "--model=lightning.pytorch.demos.boring_classes.BoringModel", "--trainer.accelerator=cpu"]
OURS = [*BORING, "--trainer.strategy=lightning_bsqh.BSQHStrategy"]


@pytest.fixture(autouse=True)
def bare_command_line(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-bsqh"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*OURS, "--trainer.strategy.max_trials=0"], "max_trials must be"),
        ([*OURS, "--trainer.strategy.eta=-1"], "eta must lie in"),
        ([*OURS, "--trainer.strategy.eta=abc"], "trainer.strategy.eta: Expected a <class 'float'>"),
        ([*OURS, "--trainer.strategy.metric=manhattan"], "metric"),
        ([*OURS, "--trainer.strategy.batch_mode=full", "--trainer.strategy.sweep=gauss-seidel"], "gauss-seidel"),
        ([*OURS, "--trainer.strategy.regularizer=lightning_bsqh.Cardnality"], "no attribute 'Cardnality'"),
        (
            [
                *OURS,
                "--trainer.strategy.regularizer=lightning_bsqh.Cardinality",
                "--trainer.strategy.regularizer.sparsity=2.0",
            ],
            "sparsity must",
        ),
        ([*OURS, "--trainer.strategi.eta=1"], "nrecognized arguments: --trainer.strategi.eta=1"),
        ([*BORING, "--trainer.max_epochs=x"], "trainer.max_epochs: Expected a <class 'int'>"),
        ([*BORING, "--trainer.strategy=nothing"], "nothing"),
        ([*BORING, "--trainer.accelerator=abacus"], "abacus"),
        ([*BORING, "--config=none.yaml"], "none.yaml"),
        ([*BORING, "--config=mnist_lent5"], "There is no recipe mnist_lent5: choose from"),
        (["fit", "--model=nothing.Net"], "model: No module named 'nothing'"),
    ],
)
def test_a_wrong_option_ends_with_its_sentence(arguments: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    lines = error[error.index("lightning-bsqh: error:") :].splitlines()
    assert len(lines) <= 3
    assert "Traceback" not in error


@pytest.mark.parametrize("damage", ["no network", "half a file"])
def test_data_that_cannot_be_had_end_with_a_sentence(tmp_path, monkeypatch, capsys, damage: str) -> None:
    def no_network(*args: object, **options: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.MNIST", no_network)
    if damage == "half a file":
        make_mnist(tmp_path / "data")
        images = tmp_path / "data" / "train-images-idx3-ubyte.gz"
        images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "mnist_lenet5", "--data.root", "data", "--trainer.accelerator", "cpu"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert ("the download failed" if damage == "no network" else "gz is damaged: it cannot be decompressed") in error
    assert "Traceback" not in error


def test_the_traceback_can_be_asked_for(monkeypatch) -> None:
    monkeypatch.setenv(SHOW_TRACEBACKS, "1")
    with pytest.raises(ValueError, match="eta must lie in"):
        main([*OURS, "--trainer.strategy.eta=-1"])


@pytest.mark.skipif(
    Version(version("jsonargparse")) < Version("4.51"),
    reason="before 4.51 jsonargparse keeps the text of an error in the user's class, but not the error",
)
def test_a_fault_of_the_users_program_keeps_its_traceback(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "faulty_network.py").write_text(
        "import lightning as L\n\n\nclass Net(L.LightningModule):\n    def __init__(self):\n"
        "        super().__init__()\n        raise ValueError('a fault of the program')\n"
    )
    with pytest.raises(ValueError, match="a fault of the program"):
        main(["fit", "--model=faulty_network.Net", "--trainer.accelerator=cpu"])


def test_what_has_no_sentence() -> None:
    for kind in (KeyError, AssertionError, AttributeError):
        assert sentence_for(kind("x")) is None
    assert in_short("anything else\nin two lines") == "anything else\nin two lines"

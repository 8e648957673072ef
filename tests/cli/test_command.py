"""The command itself: what it lists, what it needs, what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_bsqh_cli
from lightning_bsqh.cli import recipes
from lightning_bsqh.cli.main import main
from tests.report.made_runs import make_metrics


def _printed(*args: str) -> str:
    """What a new process prints; it fails if torch or jsonargparse is imported."""
    code = "import sys; sys.modules['torch'] = sys.modules['jsonargparse'] = None\n"
    code += f"import lightning_bsqh_cli\nlightning_bsqh_cli.main({list(args)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.stdout


def test_help_lists_all_commands_without_torch_or_jsonargparse() -> None:
    printed = _printed("--help")
    commands = ["fit", "validate", "test", "predict", "demo", "report", "workspace", "recipes"]
    assert all(f"\n    {command} " in printed for command in commands)


@pytest.mark.parametrize("command", ["report", "workspace", "demo", "recipes"])
def test_help_of_a_command_needs_no_torch(command: str) -> None:
    assert f"usage: lightning-bsqh {command}" in _printed(command, "--help")


def test_version() -> None:
    import lightning_bsqh

    assert _printed("--version").split() == ["lightning-bsqh", lightning_bsqh.__version__]


def test_export_is_listed_where_there_is_one(tmp_path, monkeypatch, capsys) -> None:
    seen = {}

    def there(name: str) -> bool:
        return name == "export"

    class Export:
        @staticmethod
        def add_arguments(parser) -> None:
            parser.add_argument("checkpoint")

        @staticmethod
        def run(options) -> int:
            seen["checkpoint"] = options.checkpoint
            return 3

    monkeypatch.setattr(lightning_bsqh_cli, "_is_there", there)
    monkeypatch.setitem(sys.modules, "lightning_bsqh.export", Export)
    monkeypatch.setitem(sys.modules, "lightning_bsqh.export.command", Export)
    with pytest.raises(SystemExit) as ended:
        main(["export", "a.ckpt"])
    assert (ended.value.code, seen) == (3, {"checkpoint": "a.ckpt"})
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "\n    export " in printed
    assert "\n    demo " not in printed


def test_unknown_command_names_those_there_are(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fitt"])
    assert ended.value.code == 2
    assert "there is no command 'fitt': choose from fit, validate, test, predict, demo" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("cp1252", marks=pytest.mark.slow)])
def test_no_character_ends_a_command(tmp_path, encoding: str) -> None:
    folder = make_metrics(tmp_path / "ε→∞")
    code = f"from lightning_bsqh.cli import main; main(['report', {str(folder)!r}])"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"???" in done.stdout or "ε??".encode(encoding, "replace") in done.stdout


def test_recipes_are_listed_printed_and_copied(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    main(["recipes"])
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in recipes.recipe_names())
    assert "LeNet-5 (61,470 weights) on MNIST, 5 epochs, 95 % of the weights exactly zero." in listed
    main(["recipes", "mnist_lenet5"])
    text = recipes.recipe_path("mnist_lenet5").read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    main(["recipes", "mnist_lenet5.yaml", "--copy"])
    main(["recipes", "mnist_lenet5", "--copy", "new/folder"])
    for copied in (tmp_path / "mnist_lenet5.yaml", tmp_path / "new" / "folder" / "mnist_lenet5.yaml"):
        assert copied.read_text(encoding="utf-8") == text


def test_a_copy_replaces_nothing(tmp_path) -> None:
    (tmp_path / "mnist_lenet5.yaml").write_text("mine")
    (tmp_path / "digits_lenet5.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    for name in ("mnist_lenet5", "digits_lenet5"):
        with pytest.raises(SystemExit, match="is there already and stays as it is"):
            main(["recipes", name, "--copy", str(tmp_path)])
    assert (tmp_path / "mnist_lenet5.yaml").read_text() == "mine"
    assert not (tmp_path / "elsewhere.yaml").exists()


@pytest.mark.parametrize("name", ["none", "../recipes/mnist_lenet5", "", "mnist_lenet5.txt"])
def test_unknown_recipe(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no recipe .*: choose from cifar10_resnet18, "):
        recipes.recipe_path(name)
    with pytest.raises(SystemExit, match="There is no recipe"):
        main(["recipes", name or "nothing"])


def test_config_takes_the_name_of_a_recipe(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(recipes.recipe_path("mnist_lenet5"))
    assert recipes.find_recipes(["fit", "--config", "mnist_lenet5"]) == ["fit", "--config", path]
    assert recipes.find_recipes(["fit", "--config=mnist_lenet5.yaml", "-c", "mnist_lenet5"]) == [
        "fit", f"--config={path}", "-c", path,
    ]  # fmt: skip
    # What is no name of a recipe is left to jsonargparse.
    others = [
        "fit",
        "--config",
        "own/mnist_lenet5",
        "--config",
        "none.yaml",
        "--config",
        "{a: 1}",
        "--model",
        "mnist_lenet5",
    ]
    assert recipes.find_recipes(others) == others
    with pytest.raises(FileNotFoundError, match="There is no recipe mnist_lent5"):
        recipes.find_recipes(["--config", "mnist_lent5"])
    # The user's own file goes first.
    Path("mnist_lenet5").write_text("a: 1\n")
    assert recipes.find_recipes(["--config", "mnist_lenet5"]) == ["--config", "mnist_lenet5"]


def test_report_takes_names(tmp_path, capsys) -> None:
    folders = [make_metrics(tmp_path / name) for name in ("version_0", "a=b")]
    main(["report", f"dense={folders[0]}", str(folders[1]), "--output", str(tmp_path / "both.html")])
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "<h1>Runs dense, " in text
    assert "a=b</h1>" in text

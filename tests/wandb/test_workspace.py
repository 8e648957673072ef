import importlib.util
import json
import sys
from collections.abc import Iterator

import pytest

from lightning_bsqh.cli.main import main
from lightning_bsqh.wandb import command as wandb_command
from lightning_bsqh.wandb.workspace import build_workspace


@pytest.fixture
def without_key(tmp_path, monkeypatch) -> Iterator[None]:
    """A machine on which nobody has logged in to W&B."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.teardown()  # W&B reads the environment once per process
    yield
    wandb.teardown()


def _panels(**options) -> dict[str, list[dict]]:
    """Sections of the workspace as W&B stores it."""
    workspace = build_workspace("team", "sparse", **options)
    # What save() sends: the specification that W&B's page reads.
    spec = json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return {section["name"]: section["panels"] for section in spec["section"]["panelBankConfig"]["sections"]}


def test_sections_and_what_they_show() -> None:
    pytest.importorskip("wandb_workspaces")
    sections = _panels(layers=["network.conv1"])
    assert list(sections) == ["Objective", "ε and trials", "Hamiltonian", "Sparsity", "Pictures"]
    shown = {key for panels in sections.values() for panel in panels for key in panel["config"].get("metrics", [])}
    for keys in (
        {"bsqh/objective", "bsqh/loss_decrease", "bsqh/tau", "bsqh/epsilon", "bsqh/trials", "bsqh/accepted"},
        {"hamiltonian/total", "pmp_residual/total", "sparsity/total", "nonzero/total"},
    ):
        assert keys <= shown
    lines = [panel for panels in sections.values() for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert {panel["config"]["xAxis"] for panel in lines} == {"trainer/global_step"}
    patterns = {panel["config"]["metricRegex"] for panel in lines if "metricRegex" in panel["config"]}
    assert patterns == {"^hamiltonian/.*", "^pmp_residual/.*", "^augmented_hamiltonian/gain/.*", "^sparsity/.*"}
    media = [key for panel in sections["Pictures"] for key in panel["config"]["mediaKeys"]]
    assert media == ["pictures/sparsity", "masks/network.conv1"]


def test_workspace_belongs_to_the_project() -> None:
    pytest.importorskip("wandb_workspaces")
    workspace = build_workspace("team", "sparse", name="Mine")
    assert (workspace.entity, workspace.project, workspace.name) == ("team", "sparse", "Mine")
    assert workspace.auto_generate_panels


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("", "p"), ValueError, "entity must not be empty, got ''"),
        (("e", "  "), ValueError, "project must not be empty, got '  '"),
        (("e/p", "p"), ValueError, "entity must be one name without a slash, got 'e/p': give entity and project apart"),
        (("e", None), TypeError, "project must be a string, got None"),
        (("e", "p", ""), ValueError, "name must not be empty, got ''"),
        (("e", "p", "n", "conv1"), TypeError, r"layers must be a list .* write \['conv1'\]"),
    ],
)
def test_refuses_bad_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_workspace(*arguments)


@pytest.mark.usefixtures("without_key")
def test_command_without_a_key_says_how_to_get_one() -> None:
    pytest.importorskip("wandb_workspaces")
    with pytest.raises(SystemExit, match=r"there is none\. To get one, run `wandb login`.*WANDB_API_KEY"):
        main(["workspace", "--entity", "team", "--project", "sparse"])


@pytest.mark.usefixtures("without_key")
def test_command_with_something_that_is_no_key(monkeypatch) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(SystemExit, match=r"W&B did not save .* WANDB_API_KEY invalid"):
        main(["workspace", "--entity", "team", "--project", "sparse"])


@pytest.mark.usefixtures("without_key")
def test_command_in_offline_mode(monkeypatch) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(SystemExit, match="WANDB_MODE is 'offline': unset it"):
        main(["workspace", "--entity", "team", "--project", "sparse"])


def test_command_saves(monkeypatch, capsys) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)  # other tests' loggers leave theirs
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    saved = []
    monkeypatch.setattr(wandb_command, "has_key", lambda: True)
    monkeypatch.setattr(workspaces.Workspace, "save", lambda workspace: saved.append(workspace))
    monkeypatch.setattr(workspaces.Workspace, "url", "https://wandb.ai/team/sparse?nw=1")
    main(["workspace", "--entity", "team", "--project", "sparse", "--layers", "conv1", "conv2"])
    assert [(workspace.entity, workspace.project) for workspace in saved] == [("team", "sparse")]
    assert len(saved[0].sections[-1].panels) == 3
    assert "https://wandb.ai/team/sparse?nw=1" in capsys.readouterr().out


def test_command_tells_what_wandb_refuses(monkeypatch) -> None:
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    from wandb.errors import CommError

    def refuse(workspace) -> None:
        raise CommError("entity team not found")

    monkeypatch.delenv("WANDB_MODE", raising=False)

    monkeypatch.setattr(wandb_command, "has_key", lambda: True)
    monkeypatch.setattr(workspaces.Workspace, "save", refuse)
    with pytest.raises(SystemExit, match="for entity 'team' and project 'sparse': entity team not found"):
        main(["workspace", "--entity", "team", "--project", "sparse"])


@pytest.mark.parametrize("missing", ["wandb", "wandb_workspaces"])
def test_command_without_the_packages(monkeypatch, missing: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else found(name, *rest)
    )
    with pytest.raises(SystemExit, match=rf'needs .*{missing}.*: pip install "lightning-bsqh\[wandb\]"'):
        main(["workspace", "--entity", "team", "--project", "sparse"])


def test_function_without_the_package(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ModuleNotFoundError, match="build_workspace needs the package wandb-workspaces: pip install"):
        build_workspace("team", "sparse")


@pytest.mark.parametrize("arguments", [[], ["--entity", "e"], ["--entity", "e/p", "--project", "p"]])
def test_command_refuses_bad_arguments(arguments: list[str], capsys) -> None:
    pytest.importorskip("wandb_workspaces")
    with pytest.raises(SystemExit) as error:
        main(["workspace", *arguments])
    assert error.value.code == 2
    assert "lightning-bsqh workspace: error:" in capsys.readouterr().err

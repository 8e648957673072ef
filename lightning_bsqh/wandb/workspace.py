"""A W&B workspace for bSQH trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

#: How to install what this needs.
INSTALL = 'pip install "lightning-bsqh[wandb]"'
#: What WandbLogger counts steps under.
_STEP = "trainer/global_step"


def build_workspace(
    entity: str, project: str, name: str = "Sparse training with bSQH", layers: Sequence[str] = ()
) -> Workspace:
    """Makes a workspace with the sections objective, ε and trials, Hamiltonian, sparsity and pictures.

    Needs neither a key nor a network; the ``save()`` of what is returned does. The panels are for what
    :class:`~lightning_bsqh.callbacks.BSQHMonitor` and :class:`~lightning_bsqh.callbacks.PictureMonitor` log; W&B adds
    panels of its own for everything else, the histograms of weights and the masks of all layers among them.

    Args:
        entity: User or team that the project belongs to.
        project: The project.
        name: What the workspace is called.
        layers: Full names of convolutions, such as ``network.conv1``, whose masks are shown beside the bars.

    Raises:
        ModuleNotFoundError: If wandb-workspaces is not installed.
        TypeError: If ``entity``, ``project`` or ``name`` is no string, or ``layers`` is one.
        ValueError: If ``entity``, ``project`` or ``name`` is empty, or one of the first two has a slash.
    """
    for argument, value in (("entity", entity), ("project", project), ("name", name)):
        if not isinstance(value, str):
            raise TypeError(f"{argument} must be a string, got {value!r}.")
        if not value.strip():
            raise ValueError(f"{argument} must not be empty, got {value!r}.")
        if argument != "name" and "/" in value:
            raise ValueError(
                f"{argument} must be one name without a slash, got {value!r}: give entity and project apart."
            )
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of layers' names, got the string {layers!r}: write [{layers!r}].")
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"build_workspace needs the package wandb-workspaces: {INSTALL}") from error

    def lines(title: str, *keys: str, **options: Any) -> panels.LinePlot:
        return panels.LinePlot(title=title, x=_STEP, y=list(keys), **options)

    def by_layer(title: str, prefix: str) -> panels.LinePlot:
        return panels.LinePlot(title=title, x=_STEP, metric_regex=f"^{prefix}/.*")

    sections: dict[str, list[Any]] = {
        "Objective": [
            lines("Objective after the step", "bsqh/objective"),
            lines("Loss", "train_loss", "val_loss"),
            lines("Accuracy", "val_accuracy", "test_accuracy"),
            lines("Decrease, and what the test promises", "bsqh/loss_decrease", "bsqh/promised_decrease"),
            lines("Length of the step (tau)", "bsqh/tau", log_y=True),
        ],
        "ε and trials": [
            lines("ε of the last trial", "bsqh/epsilon", log_y=True),
            lines("Trials per iteration", "bsqh/trials"),
            lines("Share of rejected trials", "bsqh/rejected_share"),
            lines("Accepted (1) or not (0)", "bsqh/accepted"),
            lines("Batches skipped", "bsqh/skipped"),
        ],
        "Hamiltonian": [
            lines("Hamiltonian", "hamiltonian/total"),
            lines("PMP residual", "pmp_residual/total", log_y=True),
            by_layer("Hamiltonian by layer", "hamiltonian"),
            by_layer("PMP residual by layer", "pmp_residual"),
            by_layer("Gain of the augmented Hamiltonian by layer", "augmented_hamiltonian/gain"),
        ],
        "Sparsity": [
            lines("Share of zeros", "sparsity/total"),
            lines("Weights left", "nonzero/total"),
            by_layer("Share of zeros by layer", "sparsity"),
            lines("Weights that came and went", "support/entered", "support/left"),
            lines("Share of multiply-adds left", "multiply_adds/share"),
            panels.BarPlot(title="Best validation accuracy", metrics=[panels.SummaryMetric("best/val_accuracy")]),
        ],
        "Pictures": [
            panels.MediaBrowser(title="Share of zeros by layer", media_keys=["pictures/sparsity"], num_columns=1),
            *(panels.MediaBrowser(title=f"Mask of {layer}", media_keys=[f"masks/{layer}"]) for layer in layers),
        ],
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[workspaces.Section(name=title, panels=shown, is_open=True) for title, shown in sections.items()],
        settings=workspaces.WorkspaceSettings(x_axis=_STEP),
        auto_generate_panels=True,
    )

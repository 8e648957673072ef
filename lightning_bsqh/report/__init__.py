"""The report of one or several runs: one HTML file that needs no network to be opened."""

from lightning_bsqh.report.checkpoints import Weights
from lightning_bsqh.report.page import write_report
from lightning_bsqh.report.reading import Run, RunFolderError, read_run, read_runs

__all__ = ["Run", "RunFolderError", "Weights", "read_run", "read_runs", "write_report"]

"""The report is written, with a note, whatever a run folder holds; at worst one sentence says what is wrong."""

import time

import pytest
import torch

from lightning_bsqh.cli import main
from tests.cases.helpers import RAW

HEAD = "bsqh/objective,bsqh/epsilon,bsqh/trials,bsqh/accepted,step,epoch\n"
ROWS = "1.0,2.0,1,1,0,0\n0.9,2.0,1,1,1,0\n"
STATE = {"state_dict": {"l.weight": torch.eye(3)}, "global_step": 3}


def state(**more):
    return {**STATE, **more}


#: metrics.csv, config.yaml and what is in the checkpoint; None where there is none.
FOLDERS = {
    "nan-trials": (HEAD + "1,1,nan,1,0,0\n1,1,1,1,1,0\n", None, None),
    "infinite-trials": (HEAD + "1,1,inf,1,0,0\n1,1,1,1,1,0\n", None, None),
    "huge-step": (HEAD + ROWS + f"1,1,1,1,{10**400},0\n", None, None),
    "huge-cell": (HEAD + ROWS + "1" * 200_000 + ",1,1,1,2,0\n", None, None),
    "yaml-with-itself-inside": (HEAD + ROWS, "a: &x\n  b: *x\n", None),
    "trials-without-accepted": (HEAD + "1,1,1,,0,0\n1,1,,1,1,0\n", None, None),
    "yaml-dates": (HEAD + ROWS, "a: [[{2020-01-01: 1}]]\n", None),
    "yaml-surrogate": (HEAD + ROWS, 'a: "\\ud800"\n', None),
    "yaml-empty-key": (HEAD + ROWS, '"": 1\n', None),
    "checkpoint-with-numbers-for-names": (HEAD + ROWS, None, {"state_dict": {1: torch.eye(3)}}),
    "best-path-a-number": (HEAD + ROWS, None, state(callbacks={"a": {"best_model_path": 5}})),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_odd_folder(what, tmp_path, capsys):
    """No traceback: a report, or for a broken metrics.csv an exit that names the file."""
    metrics, settings, checkpoint = FOLDERS[what]
    (tmp_path / "metrics.csv").write_text(metrics)
    if settings is not None:
        (tmp_path / "config.yaml").write_text(settings)
    if checkpoint is not None:
        torch.save(checkpoint, tmp_path / "a.ckpt")
    try:
        main(["report", str(tmp_path)])
    except SystemExit as error:
        assert settings is None, f"settings must not cost the report: {error}"
        assert checkpoint is None, f"a checkpoint must not cost the report: {error}"
        assert "metrics.csv" in str(error), error
        assert not RAW.search(str(error)), error
    except Exception as error:
        pytest.fail(f"a traceback: {type(error).__name__}: {error}")
    else:
        assert (tmp_path / "report.html").is_file()


def test_long_training(tmp_path):
    """30,000 rows of the monitors are read and drawn in less than ten seconds."""
    layers = [f"sparsity/net.{i}" for i in range(20)]
    rows = (f"{1 / (i + 1)},2,1,1,{i},0," + ",".join(["0.5"] * 21) for i in range(30_000))
    (tmp_path / "metrics.csv").write_text(
        HEAD.strip() + ",sparsity/total," + ",".join(layers) + "\n" + "\n".join(rows) + "\n"
    )
    start = time.perf_counter()
    main(["report", str(tmp_path)])
    assert time.perf_counter() - start < 10.0

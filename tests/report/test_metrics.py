import csv
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_bsqh.report.metrics import read_metrics, read_metrics_file, rejections, settled


def _write(path: Path, layers: int = 3, steps: int = 60, objective: float = 2.0, leave_out: str = "") -> Path:
    """A file as CSVLogger writes it: one row per call, most cells empty."""
    rows = []
    for step in range(steps):
        # In every tenth iteration the first two trials were rejected, in the 20th all of them.
        trials, accepted = (6, 0) if step == 20 else (3, 1) if step % 10 == 0 else (1, 1)
        values = {"objective": objective / (step + 1), "epsilon": 100.0 + step, "trials": trials, "accepted": accepted}
        rows.append({"step": step} | {f"bsqh/{key}": value for key, value in values.items()})
        rows.append({"step": step, "epoch": 0, "train_loss": 1.0})
        if step % 5 == 4:
            sparsity = {f"sparsity/network.layer{i}": step / steps for i in range(layers)}
            rows.append({"step": step, "sparsity/total": step / steps, **sparsity})
    keys = sorted({key for row in rows for key in row if key != leave_out})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_read_metrics_and_rejections(tmp_path) -> None:
    metrics = read_metrics(_write(tmp_path / "metrics.csv"))
    assert "epoch" not in metrics
    assert metrics["sparsity/total"][0] == list(range(4, 60, 5))
    assert rejections(metrics) == {0: 2, 10: 2, 20: 6, 30: 2, 40: 2, 50: 2}


HEAD = "bsqh/trials,bsqh/accepted,step,epoch\n"


@given(st.lists(st.lists(st.text(max_size=12), max_size=6), max_size=8), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_is_read_or_refused_with_a_sentence(tmp_path, rows: list[list[str]], header: bool) -> None:
    file = tmp_path / "metrics.csv"
    with file.open("w", newline="", encoding="utf-8", errors="ignore") as text:
        text.write(HEAD if header else "")
        # By hand: before Python 3.11 csv.writer does not write a null character.
        text.writelines(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n" for row in rows)
    try:
        found = read_metrics_file(file)
    except ValueError:
        return  # no other error
    for steps, values in found.series.values():
        assert len(steps) == len(values) > 0
    assert all(count > 0 for count in rejections(found.series).values())


def test_what_cannot_be_read_is_left_out_and_told(tmp_path) -> None:
    file = tmp_path / "metrics.csv"
    rows = [
        "1,1,0,0",
        "3,1,1,0",
        f"1,1,{10**400},0",
        "1,1,-2,0",
        "1,1,x,0",
        "1,1",
        "abc,1,4,0",
        "1" * 200_000 + ",1,5,0",
    ]
    file.write_text(HEAD + "\n".join(rows), encoding="utf-8")
    found = read_metrics_file(file)
    assert found.series["bsqh/trials"] == ([0, 1], [1.0, 3.0])
    assert found.series["bsqh/accepted"] == ([0, 1, 4], [1.0, 1.0, 1.0])
    assert len(found.faults) == 6
    assert any("field larger than field limit" in fault for fault in found.faults)


def test_a_file_longer_than_a_portion(tmp_path) -> None:
    file = tmp_path / "metrics.csv"
    with file.open("w") as text:
        text.write("bsqh/epsilon,val_loss,step,epoch\n")
        text.writelines(f"{i},{i if i % 100 == 99 else ''},{i},{i // 100}\n" for i in range(12_000))
    found = read_metrics_file(file)
    assert found.series["bsqh/epsilon"] == (list(range(12_000)), [float(i) for i in range(12_000)])
    assert found.series["val_loss"][0] == list(range(99, 12_000, 100))
    assert found.epochs == {epoch: 100 * epoch for epoch in range(1, 121)}


def test_epochs_do_not_count_the_test(tmp_path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("train_loss,test_loss,step,epoch\n1,,3,0\n1,,7,1\n,1,8,2\n", encoding="utf-8")
    assert read_metrics_file(file).epochs == {1: 4, 2: 8}


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([0.0, 0.5, 0.9, 0.9, 0.9], 2),
        ([0.0, 0.5, 0.9, 0.9], None),  # perhaps still on its way
        ([0.9, 0.9, 0.9, 0.9], None),  # never on its way
        ([0.9, 0.0, 0.0, 0.0], None),  # nothing that was demanded
        ([0.0, math.nan, 0.9, 0.9, 0.9], 2),
        ([], None),
    ],
)
def test_settled(values: list[float], step: int | None) -> None:
    assert settled((list(range(len(values))), values)) == step

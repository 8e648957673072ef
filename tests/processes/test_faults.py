"""Processes that are started as users start them, and that die."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import multiprocessing
from typing_extensions import override

import lightning_bsqh
from tests.processes import script
from tests.processes.pair import environment, free_port
from tests.processes.sharded import AtFourth, needs_shards_on_cpus
from tests.processes.training import Classes, loader, make_trainer

SCRIPT = ["-m", "tests.processes.script"]
#: Else torchrun's workers may find the addresses of those before the restart, where nobody answers.
_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def run(arguments: list[str], told: Mapping[str, str] | None = None) -> None:
    """Runs Python in the project's root, with its output in the message if it fails."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), **_STORE, **(told or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def srun(rank: int, port: int) -> dict[str, str]:
    """What srun tells the processes of a job with two tasks on one node."""
    job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost", "MASTER_PORT": str(port)}
    tasks = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    return {**job, **tasks, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}


@pytest.mark.slow
def test_slurm_starts_the_processes(tmp_path: Path) -> None:
    port = free_port()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda rank: run([*SCRIPT, "slurm", str(tmp_path)], srun(rank, port)), range(2)))
    run([*SCRIPT, "launchers", str(tmp_path)])
    found = [torch.load(tmp_path / f"{name}.pt") for name in ("slurm0", "slurm1", "popen0")]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


@pytest.mark.slow
def test_lightning_starts_the_processes(tmp_path: Path) -> None:
    run([*SCRIPT, "launchers", str(tmp_path)])
    found = [torch.load(tmp_path / f"{name}.pt") for name in ("fork", "popen0", "popen1")]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


@pytest.mark.slow
def test_a_notebook_forks_them(tmp_path: Path) -> None:
    # As IPython has it, before anything is imported.
    start = "import sys; sys.ps1 = 'In [1]: '; from pathlib import Path; from tests.processes.script import notebook"
    run(["-c", f"{start}; notebook(Path({str(tmp_path)!r}))"])
    first, second = torch.load(tmp_path / "notebook.pt")
    start_weights = script.weights(Classes())
    assert not torch.equal(first, start_weights)
    assert not torch.equal(second, first)


@pytest.fixture
def dying_pair(tmp_path: Path) -> tuple[float, str]:
    """For how long the first process went on after the second was killed, and with what it ended."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.SimpleQueue()
    port = free_port()
    processes = [context.Process(target=_dying, args=(rank, port, tmp_path, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    processes[1].join(120)
    killed = time.monotonic()
    processes[0].join(90)
    assert processes[1].exitcode == -9
    assert processes[0].exitcode == 0
    return time.monotonic() - killed, queue.get()


def _dying(rank: int, port: int, folder: Path, queue: Any) -> None:
    os.environ.update(environment(rank, 2, port))
    torch.set_num_threads(1)
    try:
        script.train(folder, 2, dies_after=12)
    except BaseException as error:
        queue.put(f"{type(error).__name__}: {error}")
    finally:
        os._exit(0)


def test_if_one_is_killed_the_other_ends_within_the_timeout(dying_pair: tuple[float, str]) -> None:
    seconds, error = dying_pair
    assert seconds < 60.0
    assert "Connection closed by peer" in error or "Connection reset by peer" in error


class FailsInBackward(torch.autograd.Function):
    """As a bug in a layer's own derivative would."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise KeyError("only in one process")


def _fails_in_backward(loss: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, FailsInBackward.apply(loss))


def _fails_in_trial(loss: torch.Tensor) -> torch.Tensor:
    if not torch.is_grad_enabled():
        raise KeyError("only in one process")
    return loss


def _failing(rank: int, port: int, folder: Path, queue: Any, fail: Any, shard: str | None) -> None:
    os.environ.update(environment(rank, 2, port))
    torch.set_num_threads(1)
    strategy = lightning_bsqh.BSQHStrategy(shard=shard, timeout=timedelta(seconds=90))
    trainer = make_trainer(strategy, folder, 2, max_steps=8)
    try:
        trainer.fit(AtFourth(fail) if shard else Fourth(fail), loader(2))
    except BaseException as error:
        queue.put((rank, f"{type(error).__name__}: {error}"))
    finally:
        # As at the end of a script that has raised.
        os._exit(1)


class Fourth(AtFourth):
    """The same, unsharded."""

    @override
    def configure_model(self) -> None:
        return


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fail", "shard"),
    [
        (_fails_in_backward, None),
        pytest.param(_fails_in_backward, "fsdp", marks=needs_shards_on_cpus),
        pytest.param(_fails_in_trial, "fsdp", marks=needs_shards_on_cpus),
    ],
)
def test_who_waits_within_torch_for_one_that_fails_ends_with_its_process(
    tmp_path: Path, fail: Any, shard: str | None
) -> None:
    """Nobody can be told there; gloo notices that the process is gone."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.SimpleQueue()
    port, began = free_port(), time.monotonic()
    given = (port, tmp_path, queue, fail, shard)
    processes = [context.Process(target=_failing, args=(rank, *given)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [1, 1]
    assert time.monotonic() - began < 60.0
    found = dict(queue.get() for _ in range(2))
    assert found[1] == "KeyError: 'only in one process'"
    assert "Connection closed by peer" in found[0] or "Connection reset by peer" in found[0]


@pytest.mark.slow
def test_torchrun_starts_again_and_nothing_is_lost(both: list[dict[str, Any]], tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    run([*torchrun, *SCRIPT, "elastic", str(tmp_path)])
    for rank in range(2):
        found = torch.load(tmp_path / f"elastic{rank}.pt")
        assert torch.equal(found, both[rank]["plain, whole"]["points"][-1])

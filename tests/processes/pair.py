"""Two processes on this machine, started once for many cases."""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException

from tests.older_lightning import accept_weights_only

#: What a process does, by name; gets a folder that both share, and gives what can be saved.
Case = Callable[[Path], Any]


def run_pair(
    cases: Sequence[tuple[str, Case]], folder: Path, processes: int = 2, prefix: str = ""
) -> list[dict[str, Any]]:
    """Runs the cases one after the other in every process; gives the results of each process by name."""
    try:
        multiprocessing.spawn(_work, (processes, free_port(), list(cases), folder, prefix), nprocs=processes)
    except ProcessExitedException as error:
        places = [f"{path.stem}: {path.read_text()}" for path in sorted(folder.glob(f"{prefix}*.at"))]
        raise RuntimeError(f"A process has crashed; they were at: {'; '.join(places)}.") from error
    return [torch.load(folder / f"{prefix}{rank}.pt", weights_only=False) for rank in range(processes)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }


def _work(rank: int, processes: int, port: int, cases: list[tuple[str, Case]], folder: Path, prefix: str) -> None:
    os.environ.update(environment(rank, processes, port))
    torch.set_num_threads(1)
    # Says where it was, should one ever crash.
    faulthandler.enable()
    # Says where it is, should one ever wait for the other in vain.
    faulthandler.dump_traceback_later(900, exit=True)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    accept_weights_only()
    results = {}
    for name, case in cases:
        (folder / f"{prefix}{rank}.at").write_text(name)
        torch.manual_seed(0)
        try:
            results[name] = case(folder)
        except BaseException:
            print(f"process {rank}, case {name}:", file=sys.stderr, flush=True)
            raise
    torch.save(results, folder / f"{prefix}{rank}.pt")
    (folder / f"{prefix}{rank}.at").write_text("its end")
    faulthandler.cancel_dump_traceback_later()
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stderr.flush()
    # The interpreter's own end takes libraries apart under threads of gloo that still run, which may crash; all that is
    # tested is over.
    os._exit(0)

"""Runs a function in two real processes that talk over gloo; importable, so that spawned processes find it."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _process(rank: int, folder: str, work: Callable[[int], Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        torch.save(work(rank), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def in_two_processes(work: Callable[[int], Any]) -> list[Any]:
    """What `work(rank)`, a function of a module, returns in either process.

    Raises:
        torch.multiprocessing.ProcessRaisedException: If it fails in one of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (folder, work), nprocs=2)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]

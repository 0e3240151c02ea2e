"""What a study adds to nnU-Net's training: seeds, checkpoints written in one step, facts for the record.

nnU-Net draws weights and patches without a seed. :func:`install` seeds this process and, where nnU-Net starts worker
processes for the augmentation without seeds, gives them some. It changes nnU-Net's classes in this process only.
"""

import contextlib
import functools
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_locctx.study.settings import write_json

SETTINGS = "LOCCTX_STUDY_TRAINING"
"""Carries the settings to the processes that train on several GPUs."""

FACTS = "locctx_facts.json"
"""In the fold's folder: facts that only the training itself knows."""


def worker_seeds(seed: int, epoch: int, rank: int, loader: int, number: int) -> list[int]:
    """Seeds of worker processes.

    Args:
        seed: The run's.
        epoch: The epoch at which the training begins; a resumed training must not draw its first patches again.
        rank: The number of the process on several GPUs.
        loader: 0 for training, 1 for validation patches, in the order nnU-Net makes them.
        number: The number of workers.
    """
    return [
        int(state) for state in np.random.SeedSequence([seed, epoch, rank, loader]).generate_state(number)
    ]


def install(seed: int, epoch: int, epochs: int, rank: int = 0) -> None:
    """Seeds this process and prepares nnU-Net's classes; call once, before the trainer is made.

    Args:
        seed: The seed of weights and sampling.
        epoch: The epoch at which the training begins; above 0 if it is resumed.
        epochs: The length that the trainer must have.
        rank: The number of this process on several GPUs.
    """
    import torch
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    mixed = seed if epoch == 0 else worker_seeds(seed, epoch, 0, 2, 1)[0]
    random.seed(mixed)
    np.random.seed(mixed % 2**32)  # noqa: NPY002 - the generator that batchgenerators draws from
    torch.manual_seed(mixed)
    loaders = iter(range(1000))
    begin = NonDetMultiThreadedAugmenter.__init__

    @functools.wraps(begin)
    def seeded(
        self: Any,
        data_loader: Any,
        transform: Any,
        num_processes: int,
        num_cached: int = 2,
        seeds: Any = None,
        **rest: Any,
    ) -> None:
        if seeds is None:
            seeds = worker_seeds(seed, epoch, rank, next(loaders), num_processes)
        begin(self, data_loader, transform, num_processes, num_cached, seeds, **rest)

    NonDetMultiThreadedAugmenter.__init__ = seeded
    save = nnUNetTrainer.save_checkpoint

    @functools.wraps(save)
    def save_at_once(self: Any, filename: str) -> None:
        draft = f"{filename}.part"
        save(self, draft)
        if self.local_rank == 0 and Path(draft).is_file():
            Path(draft).replace(filename)

    nnUNetTrainer.save_checkpoint = save_at_once
    start = nnUNetTrainer.on_train_start

    @functools.wraps(start)
    def start_and_note(self: Any) -> None:
        if self.num_epochs != epochs:
            raise ValueError(
                f"the trainer {type(self).__name__} trains for {self.num_epochs} epochs, the study asks for {epochs}"
            )
        start(self)
        if self.local_rank == 0:
            write_json(Path(self.output_folder) / FACTS, training_facts(self))
            self.peak_memory = PeakMemory(self.device.type)

    nnUNetTrainer.on_train_start = start_and_note
    end = nnUNetTrainer.on_train_end

    @functools.wraps(end)
    def note_and_end(self: Any) -> None:
        if self.local_rank == 0:
            peak = self.peak_memory.read() or None
            write_json(Path(self.output_folder) / FACTS, {**training_facts(self), "peak_memory": peak})
        end(self)

    nnUNetTrainer.on_train_end = note_and_end


class PeakMemory:
    """Peak memory of this process, or of the GPU, since its creation, minus the memory in use at that time."""

    def __init__(self, device: str) -> None:
        self._device = device
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = int(torch.cuda.memory_allocated())
            return
        # resets the peak on Linux; elsewhere the figure is an upper bound
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def read(self) -> int:
        """Bytes; 0 where the system does not say."""
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
            return int(torch.cuda.max_memory_allocated()) - self._before
        return _status("VmHWM") - self._before


def _status(entry: str) -> int:
    """An entry of /proc/self/status in bytes; without that file the peak for VmHWM, otherwise 0; on Windows 0."""
    path = Path("/proc/self/status")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    if entry != "VmHWM" or sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def training_facts(trainer: Any) -> dict[str, Any]:
    """Facts of a trainer that has built its network."""
    import torch

    gpu = torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else None
    return {
        "parameters": sum(weight.numel() for weight in trainer.network.parameters() if weight.requires_grad),
        "iterations_per_epoch": int(trainer.num_iterations_per_epoch),
        "device": trainer.device.type,
        "gpu": gpu,
    }


def run_seeded_ddp(rank: int, *arguments: Any) -> None:
    """nnU-Net's process for one of several GPUs, seeded; started by name in a process of its own."""
    from nnunetv2.run.run_training import run_ddp

    settings = json.loads(os.environ[SETTINGS])
    install(settings["seed"], settings["epoch"], settings["epochs"], rank)
    run_ddp(rank, *arguments)

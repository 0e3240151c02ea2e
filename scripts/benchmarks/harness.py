"""Code that the scripts share: clocks, memory, description of the machine, resumable records, tables and pages.

python -m scripts.benchmarks.harness MODULE.FUNCTION JOB ANSWER      # how a benchmark measures in a new process
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_locctx.files import replacing, write_atomically

REPOSITORY = Path(__file__).resolve().parents[2]

PLAIN = "nnUNetTrainer"
"""nnU-Net's own trainer, the baseline of all comparisons."""

Record = dict[str, Any]


# -------------------------------------------------------------------------------------------------- time and memory


class Clock:
    """Wall and CPU seconds since its creation; CPU time includes all threads and finished child processes."""

    def __init__(self) -> None:
        self._begin = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        spent = os.times()
        return time.perf_counter(), spent.user + spent.system + spent.children_user + spent.children_system

    def per(self, count: int) -> Record:
        """Seconds per each of `count` repetitions, and the machine's load."""
        wall, cpu = (now - begin for now, begin in zip(self._now(), self._begin, strict=True))
        return {"seconds": wall / count, "cpu": cpu / count, "load": os.getloadavg()[0]}


class MemoryWatch:
    """Samples the memory of a process and its descendants; ``rss`` and ``pss`` are the peaks in bytes.

    ``rss`` counts a shared page once per process. ``pss`` divides it among the processes; it is 0 if the system does
    not report it.
    """

    INTERVAL = 0.2
    PSS_EVERY = 5  # the kernel walks all pages for it, which takes time from what is measured

    def __init__(self) -> None:
        self.rss = 0
        self.pss = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def follow(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def _sample(self) -> None:
        import psutil

        count = 0
        while not self._stop.wait(self.INTERVAL):
            if self._process is None:
                continue
            with_pss = count % self.PSS_EVERY == 0
            count += 1
            rss = pss = 0
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(self._process.pid)
                for process in [root, *root.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error, OSError):
                        memory = process.memory_full_info() if with_pss else process.memory_info()
                        rss, pss = rss + memory.rss, pss + getattr(memory, "pss", 0)
            self.rss, self.pss = max(self.rss, rss), max(self.pss, pss)


# -------------------------------------------------------------------------------------------------------- the system


def describe_machine(device: str) -> Record:
    """Processor, memory, system and versions."""
    import psutil

    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        processor = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor
        )
    gpu = ""
    if device == "cuda":
        import torch

        gpu = torch.cuda.get_device_name(0)
    packages = ("nnunetv2", "torch", "batchgeneratorsv2", "numpy")
    return {
        "processor": f"{processor}, {os.cpu_count()} logical core(s)",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(),
        "versions": {"Python": platform.python_version(), **{name: version(name) for name in packages}},
        "gpu": gpu,
    }


def measured_on(machine: Record, *further: str) -> str:
    """The sentence of a page on its machine."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    parts = [machine["gpu"], machine["processor"], machine["memory"], machine["system"], versions, *further]
    return f"Machine: {'; '.join(part for part in parts if part)}."


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def run_logged(command: list[str], log: Path, watch: MemoryWatch | None = None) -> None:
    """Runs a command of this environment; its output goes to a file, whose end is in the error if it fails.

    Raises:
        RuntimeError: The command failed.
    """
    executable = Path(sys.executable).parent / command[0]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(executable), *command[1:]], stdout=file, stderr=subprocess.STDOUT, cwd=REPOSITORY
        )
        try:
            if watch is not None:
                watch.follow(process)
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code != 0:
        raise RuntimeError(
            f"{' '.join(command)} ended with {code}; the end of {log}:\n{log.read_text()[-3000:]}"
        )


def apart(function: str, job: Record) -> Record:
    """Runs a function of the benchmarks, such as ``networks.answer``, on a job in a new process; returns its answer.

    Raises:
        RuntimeError: The process failed; the message contains its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = ["python", "-m", "scripts.benchmarks.harness", function, json.dumps(job), str(answer)]
        run_logged(command, Path(folder) / "log")
        content: Record = json.loads(answer.read_text())
    return content


# ---------------------------------------------------------------------------------------------------------- records


class Records:
    """Finished runs in a file, one JSON object per line.

    Args:
        file: The file. Adding a run reads and replaces it as a whole, so several processes may add in turn.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def records(self) -> list[Record]:
        """All records, in the order of their addition."""
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def find(self, **fields: Any) -> Record | None:
        """The first record with these values of the fields, or None."""
        matching = (one for one in self.records if all(one.get(key) == fields[key] for key in fields))
        return next(matching, None)

    def add(self, record: Record, *same: str) -> None:
        """Adds a record; it replaces records with the same values of the fields `same`, if any are given."""
        kept = [old for old in self.records if not same or any(old[key] != record[key] for key in same)]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in [*kept, record]).encode())


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The names in the order of one round: each round starts with another name."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def unet_architecture(features: Sequence[int], strides: Sequence[Any], kernels: Sequence[Any]) -> Record:
    """The plans' entry of a U-Net with two convolutions per stage."""
    stages = len(features)
    arguments = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": list(kernels),
        "strides": list(strides),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def planned_unet(channels: int, classes: int, features: Sequence[int]) -> Any:
    """A U-Net as planned by nnU-Net for isotropic voxels, initialised; each stage halves the resolution."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    strides = [[1] * 3, *[[2] * 3] * (len(features) - 1)]
    architecture = unet_architecture(features, strides, [[3] * 3] * len(features))
    return get_network_from_plans(*architecture.values(), channels, classes, deep_supervision=False)


# ---------------------------------------------------------------------------------------------- commands, tables, pages


def described_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a script's docstring."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; empty without rows."""
    if not rows:
        return ""
    first, *others = (f"| {' | '.join(map(str, line))} |" for line in (heads, *rows))
    return "\n".join([first, "|---" * len(heads) + "|", *others])


def write_page(file: Path, title: str, *parts: str | None) -> None:
    """Writes paragraphs and tables below a title; empty ones are left out."""
    text = "\n\n".join(part.strip("\n") for part in (f"# {title}", *parts) if part)
    write_atomically(file, f"{text}\n".encode())


def write_json(file: Path, content: Record) -> None:
    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())


def spread(values: Sequence[float], digits: int) -> str:
    median = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def save_figure(figure: Any, file: Path, dpi: int) -> None:
    """Writes a matplotlib figure in one step."""
    with replacing(file) as draft:
        figure.savefig(draft, dpi=dpi)


if __name__ == "__main__":
    module, name = sys.argv[1].split(".")
    function = getattr(importlib.import_module(f"scripts.benchmarks.{module}"), name)
    Path(sys.argv[3]).write_text(json.dumps(function(json.loads(sys.argv[2]))))

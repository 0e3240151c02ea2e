"""nnU-Net's folders for one dataset, and nnU-Net's own commands run on them inside the test's process."""

import contextlib
import functools
import importlib.metadata
import io
import json
import multiprocessing
import os
import pickle
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.managers import BaseProxy
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
EXT_TRAINER = os.pathsep.join([str(REPOSITORY / "trainers"), str(Path(__file__).parent / "ext")])
PATCH = 16
FEATURES = (4, 8, 8)  # of three stages: nnU-Net's weights of deep supervision are not defined for two


def _pickled(value: Any) -> Any:
    """What a spawned worker would be given; queues and events of a manager cannot be pickled by hand."""
    if isinstance(value, BaseProxy):
        return value
    return pickle.loads(pickle.dumps(value))


class _Pool(ThreadPool):
    """A pool of threads that pickles calls and answers as a pool of spawned processes does."""

    def starmap_async(
        self, func: Callable[..., Any], iterable: Iterable[Any], *args: Any, **kwargs: Any
    ) -> Any:
        return super().starmap_async(
            _pickled(func), [_pickled(tuple(item)) for item in iterable], *args, **kwargs
        )

    def starmap(self, func: Callable[..., Any], iterable: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        return super().starmap(_pickled(func), [_pickled(tuple(item)) for item in iterable], *args, **kwargs)

    def apply_async(
        self, func: Callable[..., Any], args: Iterable[Any] = (), *rest: Any, **kwargs: Any
    ) -> Any:
        return super().apply_async(_pickled(func), _pickled(tuple(args)), *rest, **kwargs)


class _Process(threading.Thread):
    def __init__(self, target: Callable[..., Any], args: Iterable[Any], daemon: bool) -> None:
        super().__init__(
            target=_pickled(target), args=tuple(_pickled(value) for value in args), daemon=daemon
        )


class ThreadsForProcesses:
    """Stands in for multiprocessing's spawn context: importing torch and nnU-Net anew takes 8 seconds per worker.

    The commands' real processes are run by test_real_processes.py and the tests marked slow.
    """

    Pool = _Pool
    Process = _Process


WAITING = (
    "experiment_planning.dataset_fingerprint.fingerprint_extractor",
    "inference.data_iterators",
    "inference.predict_from_raw_data",
    "preprocessing.preprocessors.default_preprocessor",
    "training.nnUNetTrainer.nnUNetTrainer",
)
"""Modules of nnU-Net that sleep until their workers are done."""


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Leaves out of nnU-Net's commands what takes most of their time on tiny data and none of these tests looks at."""
    patch.setattr(multiprocessing, "get_context", lambda method=None: ThreadsForProcesses)
    patch.setattr("nnunetv2.utilities.utils.Pool", _Pool)  # forks 12 processes to list a folder's files
    # an empty picture, which the export of a model asks for
    patch.setattr(
        "nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png",
        lambda _, folder: Path(folder, "progress.png").touch(),
    )
    patch.setattr("nnunetv2.utilities.find_class_by_name.abspath", functools.cache(os.path.abspath))
    for module in WAITING:
        patch.setattr(f"nnunetv2.{module}.sleep", lambda seconds: time.sleep(seconds / 100))
    patch.setattr(torch, "set_num_threads", lambda number: None)


class Workspace:
    """nnUNet_raw, nnUNet_preprocessed and nnUNet_results below one folder.

    Attributes:
        dataset: Name of the dataset, such as ``Dataset001_Phantom``.
        output: What the last command printed.
    """

    def __init__(
        self, folder: Path, dataset: str = "Dataset001_Phantom", results: Path | None = None
    ) -> None:
        self.folder = folder
        self.dataset = dataset
        self.raw, self.preprocessed = folder / "raw", folder / "preprocessed"
        self.results = results or folder / "results"
        for path in (self.raw, self.preprocessed, self.results):
            path.mkdir(parents=True, exist_ok=True)
        self.output = ""

    def environment(self, data_processes: int = 0) -> dict[str, str]:
        """nnU-Net's variables: the folders, our trainers, few processes, no compilation."""
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": EXT_TRAINER,
            "nnUNet_n_proc_DA": str(data_processes),
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
        }

    def with_results(self, results: Path) -> "Workspace":
        """The same data with results of its own."""
        return Workspace(self.folder, self.dataset, results)

    def run(self, command: str, environment: Mapping[str, str | None] | None = None) -> str:
        """Runs one of nnU-Net's console commands in this process, as the shell would write it.

        Args:
            command: Such as ``nnUNetv2_train 1 3d_fullres 0 -device cpu``.
            environment: Variables to add; None as a value removes one.

        Returns:
            What it printed on both streams.
        """
        name, *arguments = shlex.split(command)
        (script,) = importlib.metadata.entry_points(group="console_scripts", name=name)
        printed = io.StringIO()
        # planning asks for a worker of its own where training can do without
        with self.entered(0 if "train" in name else 1, **(environment or {})) as patch:
            patch.setattr(sys, "argv", [name, *arguments])
            hurry(patch)
            try:
                with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                    script.load()()
            finally:
                self.output = printed.getvalue()
        return self.output

    @contextlib.contextmanager
    def entered(self, data_processes: int = 0, **environment: str | None) -> Iterator[pytest.MonkeyPatch]:
        """nnU-Net's variables point here; None as a value of a further variable removes it."""
        with pytest.MonkeyPatch.context() as patch:
            for key, value in {**self.environment(data_processes), **environment}.items():
                if value is None:
                    patch.delenv(key, raising=False)
                else:
                    patch.setenv(key, value)
            patch.syspath_prepend(str(REPOSITORY))  # for nnUNet_extTrainer's tests/integration/ext
            yield patch

    def trainer(self, made_by: type, configuration: str = "3d_fullres", fold: int = 0) -> Any:
        """A trainer as ``nnUNetv2_train`` makes it; use it within :meth:`entered`."""
        folder = self.preprocessed / self.dataset
        plans = {**self.plans, "continue_training": False}
        dataset = json.loads((folder / "dataset.json").read_text())
        return made_by(plans, configuration, fold, dataset, torch.device("cpu"))

    def train(
        self,
        trainer: str,
        configuration: str = "3d_fullres",
        fold: int | str = 0,
        options: str = "",
        **environment: str,
    ) -> str:
        """``nnUNetv2_train`` on the CPU."""
        return self.run(
            f"nnUNetv2_train {self.dataset} {configuration} {fold} -tr {trainer} -device cpu {options}",
            environment,
        )

    def predict(
        self,
        target: Path,
        trainer: str,
        configuration: str = "3d_fullres",
        options: str = "-f 0",
        source: Path | None = None,
    ) -> str:
        """``nnUNetv2_predict`` of the test scans on the CPU, with one worker for each of its two pools."""
        source = source or self.raw / self.dataset / "imagesTs"
        return self.run(
            f"nnUNetv2_predict -d {self.dataset} -c {configuration} -tr {trainer} -i {source} -o {target} "
            f"-device cpu -npp 1 -nps 1 --disable_progress_bar {options}"
        )

    def model(self, trainer: str, configuration: str = "3d_fullres", plans: str = "nnUNetPlans") -> Path:
        """The model folder of a training."""
        return self.results / self.dataset / f"{trainer}__{plans}__{configuration}"

    def checkpoint(
        self, trainer: str, configuration: str = "3d_fullres", fold: int | str = 0
    ) -> dict[str, Any]:
        """The final checkpoint of a training."""
        file = self.model(trainer, configuration) / f"fold_{fold}" / "checkpoint_final.pth"
        checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
        return checkpoint

    def log(self, trainer: str, configuration: str = "3d_fullres", fold: int | str = 0) -> str:
        """The log files of a training, oldest first."""
        files = sorted((self.model(trainer, configuration) / f"fold_{fold}").glob("training_log_*.txt"))
        return "\n".join(file.read_text() for file in files)

    @property
    def plans(self) -> dict[str, Any]:
        """nnUNetPlans.json as it is."""
        plans: dict[str, Any] = json.loads(self._plans_file.read_text())
        return plans

    def change_plans(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Rewrites nnUNetPlans.json."""
        plans = self.plans
        change(plans)
        self._plans_file.write_text(json.dumps(plans))

    @property
    def _plans_file(self) -> Path:
        return self.preprocessed / self.dataset / "nnUNetPlans.json"

    def prepare(
        self,
        configurations: Iterable[str] = ("3d_fullres",),
        change: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Fingerprint, plans of a tiny network and preprocessing, all by nnU-Net's commands."""
        number = int(self.dataset[7:10])
        self.run(f"nnUNetv2_extract_fingerprint -d {number} -np 1")
        self.run(f"nnUNetv2_plan_experiment -d {number}")
        self.change_plans(shrink)
        if change:
            self.change_plans(change)
        names = list(configurations)
        self.run(f"nnUNetv2_preprocess -d {number} -c {' '.join(names)} -np {' '.join('1' for _ in names)}")

    def copy(self, folder: Path) -> "Workspace":
        """An independent copy of raw and preprocessed data, without results."""
        shutil.copytree(self.raw, folder / "raw")
        shutil.copytree(self.preprocessed, folder / "preprocessed")
        return Workspace(folder, self.dataset)


def shrink(plans: dict[str, Any]) -> None:
    """Tiny 2d and 3d_fullres; adds the low resolution and the cascade, which nnU-Net plans for large volumes only."""
    configurations = plans["configurations"]
    for name in ("2d", "3d_fullres"):
        configuration = configurations[name]
        rank = len(configuration["patch_size"])
        configuration["patch_size"] = [PATCH] * rank
        configuration["batch_size"] = 2
        configuration["architecture"]["arch_kwargs"].update(tiny(rank))
    full = configurations["3d_fullres"]
    configurations["3d_lowres"] = {
        "inherits_from": "3d_fullres",
        "data_identifier": "nnUNetPlans_3d_lowres",
        "spacing": [1.25 * size for size in full["spacing"]],
        "median_image_size_in_voxels": [n / 1.25 for n in full["median_image_size_in_voxels"]],
        "next_stage": "3d_cascade_fullres",
    }
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}


def tiny(rank: int, residual: bool = False) -> dict[str, Any]:
    """Arguments of a planned network of three stages."""
    stages = len(FEATURES)
    blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    return {
        "n_stages": stages,
        "features_per_stage": list(FEATURES),
        "kernel_sizes": [[3] * rank] * stages,
        "strides": [[1] * rank, *[[2] * rank] * (stages - 1)],
        blocks: [1] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
    }


def images(folder: Path) -> dict[str, np.ndarray]:
    """All segmentations of a folder, by file name."""
    import SimpleITK

    return {
        file.name: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
        for file in sorted(folder.glob("*.nii.gz"))
    }

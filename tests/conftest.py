"""What every test may rely on: nnU-Net's folders exist, runs are single-process and seeded, no screen is needed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# a loaded machine must not fail a property, and a failure must come back on the next run
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("tests")

REPOSITORY = Path(__file__).resolve().parents[1]

# nnU-Net reads these while it is imported, so they are set before any test module is.
_FOLDERS = Path(tempfile.mkdtemp(prefix="locctx-tests-"))
_ENVIRONMENT = {
    "nnUNet_raw": str(_FOLDERS / "raw"),
    "nnUNet_preprocessed": str(_FOLDERS / "preprocessed"),
    "nnUNet_results": str(_FOLDERS / "results"),
    "nnUNet_extTrainer": str(REPOSITORY / "trainers"),
    "nnUNet_compile": "f",  # compiling takes longer than any test network runs
    "nnUNet_n_proc_DA": "1",  # 0, augmentation in the test's own process, is for training only: planning refuses it
    "nnUNet_def_n_proc": "1",
    "MPLBACKEND": "Agg",
    "PYTHONHASHSEED": "0",  # pytest orders a test's parametrised fixtures by hash; xdist's workers must agree
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve the other processes of a small machine
}
os.environ.update(_ENVIRONMENT)
for _name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    Path(_ENVIRONMENT[_name]).mkdir()


def pytest_unconfigure() -> None:
    shutil.rmtree(_FOLDERS, ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Tests that draw without a generator of their own draw the same numbers each time."""
    np.random.seed(1234)  # noqa: NPY002 - batchgenerators draws from the global state
    import torch

    torch.manual_seed(1234)


@pytest.fixture
def workers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes are started for however little work."""
    from nnunet_locctx.nnunet.data import workers

    monkeypatch.setattr(workers, "START_SECONDS", -1)


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """A trainer that was initialised and not run to its end leaves denormal floats flushed; hypothesis needs them."""
    yield
    import torch

    torch.set_flush_denormal(False)


@pytest.fixture
def nnunet_environment(tmp_path: Path) -> dict[str, str]:
    """Environment for a subprocess with nnU-Net folders of its own below `tmp_path`."""
    environment = dict(os.environ)
    for name in ("raw", "preprocessed", "results"):
        folder = tmp_path / f"nnUNet_{name}"
        folder.mkdir()
        environment[f"nnUNet_{name}"] = str(folder)
    return environment

"""Phantoms of about 24 voxels, planned and preprocessed once, for networks of two stages."""

from pathlib import Path

import pytest

from nnunet_locctx.phantoms.twin_organs import make_phantom
from tests.integration.workspace import Workspace

# nnU-Net and what it uses warn about themselves; warnings of this package stay errors
THIRD_PARTY_WARNINGS = ("default", "error:::nnunet_locctx")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for action in THIRD_PARTY_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(action))


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Five training and two test scans in mixed storage orientations, ready for all four configurations."""
    space = Workspace(tmp_path_factory.mktemp("phantom"))
    make_phantom(space.raw, 1, cases=5, test_cases=2, size=24, seed=3)
    space.prepare(("2d", "3d_fullres", "3d_lowres"))
    return space

"""The code of docs/python.md runs in the order in which it stands; the package's names are loaded on first use."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_locctx

REPOSITORY = Path(__file__).resolve().parents[2]
(PAGE,) = (REPOSITORY / "docs").rglob("python.md")


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)


def test_the_page_names_what_the_package_shows() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## Coordinates")[0]
    for name in nnunet_locctx.__all__:
        assert f"`{name}" in table, name


def run(code: str, **environment: str) -> str:
    """What a fresh interpreter prints, without nnU-Net's folders."""
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:nnunet_locctx", "-c", code],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_names_are_loaded_when_they_are_used() -> None:
    loaded = "print(sorted({'torch', 'nnunetv2', 'monai', 'numpy'} & set(sys.modules)))"
    assert run(f"import sys, nnunet_locctx; dir(nnunet_locctx); {loaded}") == "[]\n"
    assert run(f"import sys; from nnunet_locctx import Frame; {loaded}") == "['numpy']\n"


def test_no_name_needs_nnunet_or_its_folders() -> None:
    code = "import sys, nnunet_locctx; all(getattr(nnunet_locctx, name) for name in nnunet_locctx.__all__); "
    assert run(code + "print('nnunetv2' in sys.modules)") == "False\n"


def test_names_that_are_not_there() -> None:
    assert set(nnunet_locctx.__all__) <= set(dir(nnunet_locctx))
    with pytest.raises(AttributeError, match="'nnunet_locctx' has no attribute 'Frames'"):
        nnunet_locctx.Frames  # noqa: B018


def test_torchio_that_is_not_installed_says_how_to_install_it() -> None:
    code = """
import sys
sys.modules["torchio"] = None
try:
    import nnunet_locctx.pipelines.torchio
except ModuleNotFoundError as error:
    print(error)
"""
    assert run(code) == "TorchIO is not installed: pip install 'nnunet-locctx[torchio]'\n"

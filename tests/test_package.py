"""The package as users get it: the wheel's content, one version everywhere, imports that stay free of nnU-Net."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nnunet_locctx

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "nnunet_locctx"
SCRIPTS = REPOSITORY / "scripts"

# Runs in a fresh interpreter: importing a blocked package fails as if it were not installed.
BLOCKED_IMPORT = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked in this test", name=name)

sys.meta_path.insert(0, Blocker())
for module in {modules!r}:
    importlib.import_module(module)
"""


def modules_below(*rooms: str) -> list[str]:
    """Dotted names of all modules in the given rooms (files or folders) of the package."""
    imports = []
    for room in rooms:
        for path in [PACKAGE / f"{room}.py", *(PACKAGE / room).rglob("*.py")]:
            if path.is_file():
                parts = path.relative_to(REPOSITORY).with_suffix("").parts
                imports.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert imports, f"none of {rooms} is in {PACKAGE}"
    return sorted(imports)


def import_blocked(modules: list[str], blocked: set[str]) -> subprocess.CompletedProcess[str]:
    code = BLOCKED_IMPORT.format(blocked=blocked, modules=modules)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel, built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("nnunet_locctx", "trainers", "plans", "studies"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    target = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = target.glob("*.whl")
    return zipfile.Path(path)


@pytest.mark.parametrize("folder", ["trainers", "plans", "studies"])
def test_wheel_carries_the_folder(wheel: zipfile.Path, folder: str) -> None:
    expected = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected, f"{folder}/ is empty"
    prefix = "nnunet_locctx/_data/"
    names = {name.removeprefix(prefix) for name in wheel.root.namelist() if name.startswith(prefix + folder)}
    assert {name for name in names if not name.endswith("/")} == expected


def test_wheel_carries_types_licence_and_every_module(wheel: zipfile.Path) -> None:
    names = set(wheel.root.namelist())
    assert {"nnunet_locctx/py.typed", "nnunet_locctx/methods/measured.json"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {path.relative_to(REPOSITORY).as_posix() for path in PACKAGE.rglob("*.py")} <= names
    data = {
        path
        for room in ("study", "report")
        for path in (PACKAGE / room).rglob("*")
        if path.suffix in (".json", ".jinja", ".js", ".yaml") or path.name == "Snakefile"
    }
    assert {
        "page.html.jinja",
        "page.js",
        "report.md.jinja",
        "locbam_table2.json",
        "Snakefile",
        "config.yaml",
    } <= {path.name for path in data}
    assert {path.relative_to(REPOSITORY).as_posix() for path in data} <= names


def test_wheel_declares_the_command(wheel: zipfile.Path) -> None:
    (entry_points,) = [name for name in wheel.root.namelist() if name.endswith("entry_points.txt")]
    assert "locctx = nnunet_locctx.cli:main" in wheel.root.read(entry_points).decode()


def test_one_version_everywhere(wheel: zipfile.Path) -> None:
    version = nnunet_locctx.__version__
    citation = re.search(r"^version: (\S+)$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation is not None
    assert citation[1] == version
    assert f"version = {{{version}}}" in (REPOSITORY / "README.md").read_text()  # BibTeX
    released = re.findall(r"^## \[(\d\S*)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == version
    (metadata,) = [name for name in wheel.root.namelist() if name.endswith("dist-info/METADATA")]
    assert f"\nVersion: {version}\n" in wheel.root.read(metadata).decode()


@pytest.mark.slow
def test_lower_floors_import_without_nnunet() -> None:
    """Every module; tests/pipelines/test_page.py loads all public names."""
    modules = ["nnunet_locctx", *modules_below("types", "geometry", "location", "blocks", "networks")]
    result = import_blocked(modules, {"nnunetv2"})
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["nnunet_locctx", "nnunet_locctx.types", "nnunet_locctx.geometry"])
def test_ground_floor_imports_without_torch(module: str) -> None:
    result = import_blocked([module], {"nnunetv2", "torch", "monai", "SimpleITK", "matplotlib"})
    assert result.returncode == 0, result.stderr


def test_blocked_import_is_noticed() -> None:
    """The blocker of the two tests above does block."""
    result = import_blocked(["nnunetv2.paths"], {"nnunetv2"})
    assert result.returncode != 0
    assert "blocked in this test" in result.stderr


def test_public_modules_say_what_they_are_for() -> None:
    undocumented = [
        str(path.relative_to(REPOSITORY))
        for path in PACKAGE.rglob("*.py")
        if path.read_text().strip() and not path.read_text().lstrip().startswith(('"""', 'r"""'))
    ]
    assert undocumented == []


def links(page: Path) -> list[str]:
    """Relative link targets of a Markdown page."""
    return re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())


@pytest.mark.parametrize(
    "page",
    sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *SCRIPTS.rglob("*.md")]),
    ids=lambda page: page.name,
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    broken = [target for target in links(page) if not (page.parent / target).exists()]
    assert broken == []

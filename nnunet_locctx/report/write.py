"""Writes the report's folder as a whole: the page, its twin in Markdown, CSV files and figures."""

import base64
import os
import shutil
from pathlib import Path

from tqdm import tqdm

from nnunet_locctx.report.document import Document, to_csv
from nnunet_locctx.report.results import CASE_KEYS, METRICS, NO_FOLD, TEST, VALIDATION, load_study
from nnunet_locctx.report.sections import build_document

PAGE, TWIN, FIGURES = "index.html", "report.md", "figures"
TEMPLATES = Path(__file__).parent
MARKUP = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]<>|#"})


def write_report(work: Path, output: Path | None = None, *, progress: bool = False) -> Path:
    """Writes ``index.html`` (one file, nothing to load), ``report.md``, CSV files and ``figures/``.

    There is a CSV file per table, and ``cases.csv`` with every measure of every case and class.

    The folder is made aside and then takes its place: a reader sees the old report or the new one. The same study gives
    the same bytes.

    Args:
        work: The study's work folder, finished or not.
        output: Folder of the report, made anew; None: ``report`` in the work folder.
        progress: Show a progress bar.

    Returns:
        The page.

    Raises:
        ValueError: `work` holds no study, or `output` is a folder that holds something else than a report.
    """
    target = work / "report" if output is None else output
    _check_target(target)
    study = load_study(work)
    with tqdm(desc="report", unit=" parts", disable=not progress) as bar:

        def step(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        document = build_document(study, step)
    files = {PAGE: render(document, "page.html.jinja").encode()}
    files[TWIN] = render(document, "report.md.jinja").encode()
    files |= {f"{table.key}.csv": table.to_csv().encode() for table in document.tables()}
    files |= {figure.file: figure.png for figure in document.figures()}
    for part, name in ((VALIDATION, "cases.csv"), (TEST, "test_cases.csv")):
        cases = study.foreground_scores(part)[["preset", "method", *CASE_KEYS, *METRICS]]
        if len(cases):
            fold = cases["fold"].where(cases["fold"] != NO_FOLD).astype("Int64")
            files[name] = to_csv(cases.assign(fold=fold)).encode()
    _replace(target, files)
    return target / PAGE


def render(document: Document, template: str) -> str:
    """The whole report as HTML or Markdown.

    Args:
        document: The report.
        template: A file in this folder.

    Raises:
        ValueError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ValueError("the report's page needs Jinja2: pip install 'nnunet-locctx[study]'") from error
    environment = Environment(
        autoescape=".html" in template, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"embedded": _embedded, "plain": _plain}
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(document=document).strip() + "\n"


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _plain(text: str) -> str:
    """Markdown that shows the text as it is: no markup, no line breaks."""
    return " ".join(text.split()).translate(MARKUP)


def _check_target(target: Path) -> None:
    """Refuses to take the place of somebody's folder.

    Raises:
        ValueError: It is a file, or holds what no report has.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"the report needs a folder, {target} is a file")
    foreign = sorted(
        path.name
        for path in target.iterdir()
        if path.name not in (PAGE, TWIN, FIGURES) and path.suffix != ".csv" and not path.name.startswith(".")
    )
    if foreign or ((target / FIGURES).exists() and not (target / PAGE).exists()):
        raise ValueError(
            f"{target} would be replaced as a whole, but holds something else than a report"
            + (f": {', '.join(foreign[:5])}" if foreign else "")
        )


def _replace(target: Path, files: dict[str, bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{os.getpid()}.{target.name}")
    old = target.with_name(f".{os.getpid()}.old.{target.name}")
    try:
        for name, data in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(data)
        if target.exists():
            target.rename(old)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(target)

"""The written report: complete, self-contained, escaped, the same each time, never half written."""

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nnunet_locctx.cli import main
from nnunet_locctx.report import browser, write_report
from nnunet_locctx.report.document import Document, Section, Table, render, write_document
from tests.report.synthetic_study import PRESETS, Synthetic, edit_json, robustness, write_json

SMALL = "locbam_lowres_small"
EVIL = "<script>alert('x')</script> & | `co`"


class Page(HTMLParser):
    """Tags, sources and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.alternatives: list[str] = []
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        attributes = dict(attrs)
        self.sources += [str(attributes[key]) for key in ("src", "srcset", "data") if key in attributes]
        self.alternatives += [str(attributes.get("alt"))] if tag == "img" else []
        self.anchors.add(str(attributes.get("id")))
        self.targets += [str(attributes["href"])] if "href" in attributes else []

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gains = {"Baseline": (0, 0), "LocBAM": (0.05, 0.01)}
    one = Synthetic(gains=gains, images=True, cases_per_fold=2, epochs=4)
    work = one.write(tmp_path_factory.mktemp("page"))
    edit_json(work / "study.json", papers=["locbam_table2", "no_such"])
    file = work / "runs" / f"LocBAM__{SMALL}" / "robustness" / "robustness.json"
    write_json(file, robustness("LocBAM", one.case_names(0), 0.3))
    return work


@pytest.fixture(scope="module")
def written(work: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunet_locctx.report.statistics.RESAMPLES", 99)
        patch.setattr("nnunet_locctx.report.style.DPI", 50)
        return write_report(work).parent


def test_the_page_needs_nothing_else(written: Path) -> None:
    page = Page((written / "index.html").read_text())
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert page.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    # the cases' figures stand for the browser where there are no scripts
    plots = [file for file in (written / "figures").glob("*.svg") if not file.name.startswith("cases_")]
    assert len(page.sources) == len(plots)
    for target in page.targets:
        assert (target[1:] in page.anchors) if target.startswith("#") else (written / target).is_file()
    text = (written / "index.html").read_text()
    assert not re.search(r"https?://(?!www\.w3\.org)|fetch\(|XMLHttpRequest|import\(|@import", text)
    assert len(text) < 2_000_000


def test_every_figure_and_table_is_there(written: Path) -> None:
    figures = {file.stem for file in (written / "figures").glob("*.svg")}
    each = {f"{kind}_{preset}" for kind in ("class_gain", "cases") for preset in PRESETS}
    assert figures == {"coverage_gain", "training", "wrong_location", *each}
    assert all(file.read_bytes().startswith(b"<svg") for file in (written / "figures").glob("*.svg"))
    page, twin = (written / "index.html").read_text(), (written / "report.md").read_text()
    (curves,) = (written / "figures").glob("*.csv")
    assert "[CSV](figures/training.csv)" in twin
    assert 'href="figures/training.csv"' in page
    epochs = list(csv.DictReader(curves.read_text().splitlines()))
    assert {"preset", "method", "fold", "epoch", "train_loss", "pseudo_dice"} <= set(epochs[0])
    assert len({(row["preset"], row["method"], row["fold"]) for row in epochs}) == 4 * 2
    tables = re.findall(r'id="table-([^"]+)"', page)
    assert {"overview", "comparison", "errors", "training", "wrong_location", "paper_locbam_table2"} <= set(
        tables
    )
    for name in tables:
        assert f"[CSV]({name}.csv)" in twin
        assert len(list(csv.reader((written / f"{name}.csv").read_text().splitlines()))) > 1
    # the same pictures in the same order, each with words for those who cannot see it
    alternatives = Page(page).alternatives
    assert all(len(words.split()) > 3 for words in alternatives)
    pictures = re.findall(r"!\[(.*?)\]\(figures/(.*?)\.svg\)", twin.replace("\\", ""))
    assert [words for words, name in pictures if not name.startswith("cases_")] == alternatives
    assert {name for _, name in pictures} == figures
    assert "no paper's table 'no_such'" in Page(page).text
    cases = list(csv.DictReader((written / "cases.csv").read_text().splitlines()))
    assert len(cases) == 4 * 4 * 5  # runs, cases, classes


def test_the_same_study_gives_the_same_bytes(work: Path, written: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunet_locctx.report.statistics.RESAMPLES", 99)
        patch.setattr("nnunet_locctx.report.style.DPI", 50)
        again = write_report(work, tmp_path / "again").parent
    names = sorted(str(file.relative_to(written)) for file in written.rglob("*") if file.is_file())
    assert names == sorted(str(file.relative_to(again)) for file in again.rglob("*") if file.is_file())
    for name in names:
        assert (written / name).read_bytes() == (again / name).read_bytes(), name


def test_names_are_text_never_markup(tmp_path: Path) -> None:
    one = Synthetic(
        gains={"Baseline": (0,), EVIL.replace("/", ""): (0.02,)}, presets=(SMALL,), folds=1, title=EVIL
    )
    work = one.write(tmp_path)
    failure = {"job": "train", "run": "r", "fold": 0, "exit_status": 1, "log": "l"}
    write_json(work / "failures" / "train.json", {**failure, "message": f"{EVIL}\nlast | line"})
    folder = write_report(work).parent
    text = (folder / "index.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 2  # the names as data, and the page's own
    assert "<script>alert" not in text
    assert EVIL in page.text
    assert "1 failed job" in page.text
    # indented lines are code, where nothing is markup
    twin = "\n".join(
        line for line in (folder / "report.md").read_text().splitlines() if not line.startswith("    ")
    )
    assert "<script" not in twin.replace("\\<script", "")
    (line,) = [line for line in twin.splitlines() if line.startswith("| train |")]
    assert len(re.findall(r"(?<!\\)\|", line)) == 7  # six cells, whatever they hold


def test_a_failure_while_writing_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Synthetic(gains={"Baseline": (0,)}, presets=(SMALL,), folds=1, cases_per_fold=2).write(tmp_path)
    page = write_report(work)
    before = page.read_bytes()

    def fail(self: Path, data: bytes) -> int:
        raise OSError("disk full")

    edit_json(work / "study.json", title="changed")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        with pytest.raises(OSError, match="disk full"):
            write_report(work)
    assert page.read_bytes() == before
    assert [path.name for path in work.iterdir() if "report" in path.name] == ["report"]
    write_report(work)
    assert b"changed" in page.read_bytes()


def test_foreign_folders_are_not_replaced(work: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.docx"):
        write_report(work, tmp_path)
    assert (tmp_path / "thesis.docx").read_text() == "years of work"
    with pytest.raises(ValueError, match=r"study\.json"):
        write_report(work, work)
    for folder, file in (("tables", "patients.csv"), ("repository", ".git"), ("page", "index.html")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("years of work")
        with pytest.raises(ValueError, match=f"holds something else than a report: {re.escape(file)}"):
            write_report(work, tmp_path / folder)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Synthetic(gains={"Baseline": (0,)}, presets=(SMALL,), folds=1, cases_per_fold=2).write(tmp_path)
    assert main(["report", str(work), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out' / 'index.html'}\n"
    stale = tmp_path / "out" / "stale.csv"
    stale.write_text("a\n")
    assert main(["report", str(work), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    assert not stale.exists()
    assert main(["report", str(tmp_path), "--quiet"]) == 2
    assert "no study's work folder" in capsys.readouterr().err


def test_settings_and_commands_are_told(written: Path, work: Path) -> None:
    text = Page((written / "index.html").read_text()).text
    commands = (f"locctx report {work}", "-tr LocBAMTrainer")
    for words in ("nnunetv2 2.8.1", "machine, cpu: test", "seed: 0", *commands):
        assert words in text
    assert json.loads((work / "study.json").read_text())["fairness"][0]["what"] in text


CLICKS = """
const log = [], shown = rows => rows.filter(row => !row.hidden);
const table = document.querySelector("#table-comparison table");
const classes = document.querySelector("[id^=table-classes] table");
const column = at => [...table.tBodies[0].rows].map(row => row.cells[at].textContent);
const head = [...table.tHead.rows[0].cells].find(cell => cell.textContent === "gain, points");
log.push(column(5));
head.querySelector("button").click(); log.push([head.ariaSort, ...column(5)]);
head.querySelector("button").click(); log.push([head.ariaSort, ...column(5)]);
head.querySelector("button").click(); log.push([head.ariaSort, ...column(5)]);
const view = () => [...document.querySelectorAll(".view")].map(one => one.ariaLabel);
const cases = document.querySelector("select[title=case]"), slider = document.querySelector("input[type=range]");
log.push([...cases.options].map(one => one.text));
slider.value = 0; slider.dispatchEvent(new Event("input")); log.push(view());
document.querySelector("button[title='next case']").click(); log.push([cases.selectedIndex, view()[0]]);
log.push(getComputedStyle(document.querySelector(".view")).backgroundImage.match(/data:image.(png|jpeg)/g));
document.querySelector("input[value=Baseline]").click();
log.push([shown([...table.tBodies[0].rows]).map(row => row.cells[1].textContent), view().length]);
document.querySelector("input[value=liver]").click();
log.push([...classes.tHead.rows[0].cells].filter(cell => cell.offsetParent).map(cell => cell.textContent));
log.push(document.querySelector("#filter summary").textContent);
document.body.dataset.log = JSON.stringify(log);
"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_sorts_filters_and_browses(written: Path, tmp_path: Path) -> None:
    text = (written / "index.html").read_text()
    # the page's own script is done when this one begins
    (tmp_path / "page.html").write_text(text.replace("</body>", f"<script>{{{CLICKS}}}</script></body>"))
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/profile",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
    )
    match = re.search(r'data-log="([^"]*)"', done.stdout)
    assert match, done.stderr[-2000:]
    log = json.loads(html.unescape(match[1]))
    stored = list(csv.DictReader((written / "comparison.csv").read_text().splitlines()))
    gains = [float(row["gain"]) for row in stored if row["gain"]]
    none, few, many = (
        "\N{EN DASH}",
        *(f"{100 * gain:+.2f}".replace("-", "\N{MINUS SIGN}") for gain in sorted(gains)),
    )
    as_written, falling, rising, again = log[:4]
    assert sorted(as_written) == sorted([none, few, none, many])
    assert falling == ["descending", many, few, none, none]
    assert rising == ["ascending", few, many, none, none]
    assert again == [None, *as_written]
    options, slices, after, pictures, filtered, heads, summary = log[4:]
    dice = [float(re.findall(r"LocBAM ([\d.]+)%", option)[0]) for option in options]
    assert len(options) == 4
    assert dice == sorted(dice)
    assert [label.split(", ")[3].split(":")[0] for label in slices] == ["truth", "Baseline", "LocBAM"]
    assert all("axial, slice 3 of 12" in label for label in slices)
    assert after[0] == 1
    assert after[1].startswith(options[1].split(":")[0])
    assert pictures == ["data:image/png", "data:image/jpeg"]
    assert filtered == [["LocBAM", "LocBAM"], 2]
    assert "liver" not in heads
    assert "spleen" in "".join(heads)
    assert summary == "Show 1 of 2 methods, 4 of 5 classes"


def test_swapped_voxels_and_the_truths_outline_are_in_the_pictures() -> None:
    colours = {1: ("left", "#0072b2"), 2: ("right", "#d55e00")}
    truth = np.zeros((2, 4, 6), np.uint8)
    truth[1, 1:3, 1:3], truth[1, 1:3, 4:6] = 1, 2
    predicted = np.where(truth == 1, 2, truth)
    swapped = (truth == 1) & (predicted == 2)
    url = browser._labels(predicted, truth, swapped, colours)
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA")
    factor = browser.SIDE // 6
    assert picture.size == (6 * factor, 2 * 4 * factor)
    pixels = np.asarray(picture).reshape(2, 4, factor, 6, factor, 4)
    middle = pixels[:, :, factor // 2, :, factor // 2]
    assert not middle[0].any()
    assert (middle[1, 1:3, 1:3] == (*bytes.fromhex(browser.SWAPPED[1:]), 190)).all()
    assert (middle[1, 1:3, 4:6, :3] == tuple(bytes.fromhex("d55e00"))).all()
    assert (pixels[1, 1, 0, 1] == (255, 255, 255, 200)).all()  # the upper edge of the left one


def test_wide_tables_are_printed_with_their_columns_as_rows() -> None:
    """That the printed page cuts nothing was checked by eye, with Chromium."""
    frames = [
        pd.DataFrame([["x"] * number], columns=[f"class {one}" for one in range(number)])
        for number in (14, 15)
    ]
    tables = [Table(f"table_{len(frame.columns)}", "", frame) for frame in frames]
    page = render(Document("title", "", [Section("key", "title", tables)]), "page.html.jinja")
    assert re.findall(r"<table[^>]*>", page) == ["<table>", '<table class="wide" style="--columns: 15">']


def test_a_report_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report"
    write_document(Document("old", "", []), target, {})
    rename = Path.rename

    def refused(path: Path, to: Path) -> Path:
        if path.name.startswith(".") and ".old." not in path.name:
            raise OSError(28, "No space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="No space"):
        write_document(Document("new", "", []), target, {})
    assert "# old" in (target / "report.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]

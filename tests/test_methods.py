"""`locctx methods`: what it says comes from the trainers and from the file of figures."""

import json
from pathlib import Path

import pytest

from nnunet_locctx.blocks import DEFAULTS
from nnunet_locctx.cli import main
from nnunet_locctx.methods import description
from nnunet_locctx.methods.description import YEAR, describe, list_methods, split_sources
from nnunet_locctx.methods.measured import MEASURED_FILE, Figures, Measured, read_measured
from nnunet_locctx.methods.table import FORMATS, GROUPS, format_methods
from nnunet_locctx.nnunet.plans.presets import list_presets
from nnunet_locctx.nnunet.training.trainer import LocatedTrainer
from nnunet_locctx.nnunet.training.trainers import RECOMMENDED, TRAINERS

FIGURES = Figures(
    parameters=31_000_000,
    parameters_ratio=1.0012,
    multiply_adds=10**9,
    multiply_adds_ratio=0.25,
    step_ratio=1.04,
    dice=0.875,
    dice_plain=0.0,
    seeds=3,
    heads=0.7,
)
MEASURED = Measured({"PriorHeadTrainer": FIGURES}, ["step: on a machine."])


@pytest.mark.parametrize("name", sorted(TRAINERS))
def test_every_trainer_says_what_it_is_and_where_it_is_from(name: str) -> None:
    method = describe(TRAINERS[name])
    assert len(method.what) > 10
    assert "\n" not in method.what
    assert not YEAR.search(method.what)
    assert method.source
    assert (method.place is not None) == issubclass(TRAINERS[name], LocatedTrainer)


@pytest.mark.parametrize(
    ("text", "what", "sources"),
    [
        ("A (Smith et al., MICCAI 2020): does it.", "A: does it", ["Smith et al., MICCAI 2020"]),
        ("A (Smith 1999), with B (hash; Jones 2001).", "A, with B (hash)", ["Smith 1999", "Jones 2001"]),
        (
            "Head (of logits): an atlas. This project's own.",
            "Head (of logits): an atlas",
            ["this project's own"],
        ),
        ("A variant.", "A variant", []),
        ("A thing\nof two lines.\n\nMore (Smith 1999; Smith 1999).", "A thing of two lines", ["Smith 1999"]),
        ("A.\n\nB. This project's own; see C.", "A", ["this project's own"]),
    ],
)
def test_sources_are_the_parentheses_with_a_year(text: str, what: str, sources: list[str]) -> None:
    assert split_sources(text) == (what, sources)


def test_a_variant_has_the_source_of_its_method() -> None:
    variant = type("Variant", (TRAINERS["GPETrainer"],), {"__doc__": "Another form."})
    assert describe(variant).source == describe(TRAINERS["GPETrainer"]).source == "Le and Le 2025"
    assert describe(TRAINERS["GPEHashTrainer"]).source == "Le and Le 2025; Müller et al. 2022"


def test_places_and_encodings_are_those_of_the_code() -> None:
    prior, gpe_hash = describe(TRAINERS["PriorHeadTrainer"]), describe(TRAINERS["GPEHashTrainer"])
    assert (prior.place, prior.encoding) == (DEFAULTS["prior"].place, "frequency")
    assert describe(TRAINERS["GPETrainer"]).place == DEFAULTS["gpe"].place
    assert (gpe_hash.place, gpe_hash.encoding) == ("decoder", "hash")
    plain, twin = describe(TRAINERS["UNETRTrainer"]), describe(TRAINERS["GPEHashUNETRTrainer"])
    assert (plain.place, plain.encoding) == (None, None)
    assert twin.place is not None
    assert twin.encoding == "hash"


def test_the_published_form_of_a_method_is_a_preset_for_its_trainer() -> None:
    published = {name: describe(TRAINERS[name]).published for name in TRAINERS}
    assert published["GPETrainer"] == "gpe_published"
    assert published["GPEHashTrainer"] == "gpe_hash_published"
    assert published["UNETRPPTrainer"] == "gpe_synapse_published, unetrpp_acdc_published"
    assert published["PNetworkTrainer"] == "gpe_synapse_published"
    assert published["LightMedSegPaperTrainer"] is not None
    assert published["LocCtxTrainer"] is None
    for names in filter(None, published.values()):
        assert names == "as it is" or set(names.split(", ")) <= set(list_presets())
    (row,) = [
        row
        for row in format_methods(list_methods("gpehasht"), MEASURED, "markdown").splitlines()
        if "Hash" in row
    ]
    assert row.split(" | ")[3] == "gpe_hash_published"
    printed = " ".join(format_methods(list_methods("gpehasht"), MEASURED).split())
    assert "; as published: gpe_hash_published" in printed


def test_filter() -> None:
    assert [one.name for one in list_methods("priorhead")] == ["PriorHeadTrainer"]
    assert sorted(one.name for one in list_methods()) == sorted(TRAINERS)
    with pytest.raises(ValueError, match=r"no trainer's name contains 'moon'; there are .*CoordConvTrainer"):
        list_methods("moon")


def test_table_fits_a_terminal_and_shows_figures() -> None:
    text = format_methods(list_methods(), MEASURED)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    (row,) = [line for line in lines if line.startswith("PriorHeadTrainer")]
    assert row.split() == [
        "PriorHeadTrainer",
        "logits",
        "frequency",
        "1.001",
        "0.250",
        "1.040",
        "0.88",
        "0.70",
        "-",
    ]
    (row,) = [line for line in lines if line.startswith("LocBAMTrainer")]
    assert row.split()[-6:] == ["-"] * 6
    assert lines[-1] == "step: on a machine."


def test_markdown_has_one_row_per_trainer() -> None:
    rows = format_methods(list_methods(), MEASURED, "markdown").splitlines()[: 2 + len(TRAINERS)]
    assert {row.replace("\\|", "").count("|") for row in rows} == {13}
    (row,) = [row for row in rows if row.startswith("| `PriorHeadTrainer`")]
    assert row.endswith("| logits | frequency | 1.001 | 0.250 | 1.040 | 0.88 | 0.70 | - |")


def test_json_has_numbers_and_nulls() -> None:
    content = json.loads(format_methods(list_methods(), MEASURED, "json"))
    rows = {row["name"]: row for row in content["methods"]}
    assert rows["PriorHeadTrainer"]["step_ratio"] == 1.04
    assert rows["PriorHeadTrainer"]["seeds"] == 3
    assert rows["LocBAMTrainer"]["dice"] is None
    assert content["notes"] == MEASURED.notes


def test_groups_begin_with_the_one_to_try_first() -> None:
    groups = [one.group for one in list_methods()]
    assert groups == sorted(groups, key=GROUPS.index)
    assert [one.name for one in list_methods() if one.group == GROUPS[0]] == [RECOMMENDED]
    lines = format_methods(list_methods(), MEASURED).splitlines()
    assert [line for line in lines if line.endswith(":") and line[0] != " "] == [
        f"{group}:" for group in GROUPS
    ]
    assert {one.group for one in list_methods(planned=True)} == set(GROUPS[:2])
    assert {one.place is None for one in list_methods() if one.group == GROUPS[3]} == {True}


def test_unknown_format() -> None:
    with pytest.raises(ValueError, match="format must be one of table, markdown, json, got 'xml'"):
        format_methods(list_methods(), MEASURED, "xml")


@pytest.mark.parametrize("form", FORMATS)
def test_the_recommended_one_is_marked(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "RECOMMENDED", "PriorHeadTrainer")
    text = format_methods(list_methods("priorhead"), Measured(), form)
    assert ('"recommended": true' in text) if form == "json" else (text.count("*") >= 2)
    assert "*" not in format_methods(list_methods("locbam"), Measured(), "table")


def test_without_the_file_there_are_no_figures(tmp_path: Path) -> None:
    assert read_measured(tmp_path / "nothing.json") == Measured()


def test_the_file_is_about_trainers_that_exist() -> None:
    measured = read_measured()
    assert MEASURED_FILE.is_file()
    assert set(measured.figures) <= set(TRAINERS)
    assert all(0 <= one.dice <= 1 for one in measured.figures.values() if one.dice is not None)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    assert "LocBAMTrainer " in text
    assert "\nUNETRTrainer " not in text
    assert text.endswith("locctx methods --all\n")
    assert main(["methods", "--all"]) == main(["methods", "unetr"]) == 0
    assert capsys.readouterr().out.count("\nUNETRTrainer ") == 2
    assert main(["methods", "locbam"]) == 0
    text = capsys.readouterr().out
    assert "LocBAMTrainer" in text
    assert "PriorHeadTrainer " not in text
    assert main(["methods", "moon"]) == 2
    assert "no trainer's name contains 'moon'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["methods", "--format", "xml"])
    assert "unknown 'xml'" in capsys.readouterr().err

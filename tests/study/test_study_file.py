"""Study files: every mistake is named before anything is written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_locctx.study.cases import check_study, write_splits
from nnunet_locctx.study.model import Study, find_study, read_study
from nnunet_locctx.study.steps import environment
from tests.study.small_study import CASES, DATASET, SPLITS, write_dataset, write_study

METHODS = {"Plain": {"trainer": "nnUNetTrainer"}}
REPOSITORY = Path(__file__).resolve().parents[2]


def located(**options):
    """A study with a method that takes a location."""
    return {"methods": {**METHODS, "L": {"trainer": "GPETrainer", **options}}}


def read(file):
    """A study, checked as a whole."""
    study = read_study(file)
    check_study(study)
    return study


def test_a_study_is_read(folder, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "/not/this/one")
    study = read(write_study(folder, folds=[0, 1]))
    assert (study.dataset, study.plans, study.folds) == (DATASET, "nnUNetPlans_small", (0, 1))
    assert study.work == folder / "work"
    methods = [(method.trainer, method.source) for method in study.methods]
    assert methods == [("nnUNetTrainer_5epochs", None), ("CoordConvTrainer_5epochs", "voxel")]
    assert environment(study)["nnUNet_raw"] == str(folder / "raw")
    assert not study.work.exists()
    assert Study.model_validate_json(study.model_dump_json(by_alias=True)) == study


def test_runs_share_data_of_one_spacing_and_differ_in_configuration(folder):
    (folder / "farther.json").write_text(json.dumps({"patch_size": [64, 64, 64], "spacing": [3.0, 3.0, 3.0]}))
    located = {"trainer": "LocBAMTrainer", "sources": ["voxel", "scanner"], "options": {"jitter": 0.1}}
    methods = {**METHODS, "Loc": located}
    study = read(write_study(folder, methods=methods, presets=["near.json", "far.json", "farther.json"]))
    runs = study.runs
    assert list(runs)[:3] == ["Plain__near", "Loc-voxel__near", "Loc-scanner__near"]
    assert study.methods[1].name == "Loc (voxel)"
    assert len({run.model for run in runs.values()}) == 9
    assert {run.data for run in runs.values()} == {"planned", "3x3x3mm"}
    assert [study.data_configuration(name) for name in ("planned", "3x3x3mm")] == ["3d_fullres", "far"]
    added = study.configurations
    assert added["far"].base == "3d_fullres"
    own = added[runs["Loc-scanner__far"].configuration]
    assert (own.base, own.changes) == ("far", {"location": {"source": "scanner", "jitter": 0.1}})


def test_one_seed_is_the_first_of_several(folder):
    methods = {**METHODS, "Loc": {"trainer": "LocBAMTrainer", "options": {"jitter": 0.1}}}
    one, several = (
        read(write_study(folder, methods=methods, **seeds)) for seeds in ({"seed": 3}, {"seeds": [3, 5]})
    )
    assert one.seeds == (3,)
    assert Study.model_validate_json(one.model_dump_json(by_alias=True)) == one
    old = {**json.loads(one.model_dump_json(by_alias=True, exclude={"seeds"})), "seed": 3}
    assert Study.model_validate(old) == one  # as study.json of earlier versions has it
    assert {slug: several.runs[slug] for slug in one.runs} == one.runs
    further = several.runs["Loc__far__seed5"]
    first = one.runs["Loc__far"]
    assert (further.seed, further.data) == (5, first.data)
    assert further.configuration == f"{first.configuration}_seed5"
    assert several.configurations[further.configuration].base == first.configuration
    assert several.runs["Plain__near__seed5"].configuration == "near_seed5"
    assert len({run.model for run in several.runs.values()}) == 8


def test_names_of_presets_that_cannot_be_used(folder):
    (folder / f"{'x' * 95}.json").write_text(json.dumps({"batch_size": 2}))
    with pytest.raises(
        ValueError, match=r"a configuration of study\.yaml must be made of at most 100 letters"
    ):
        read(write_study(folder, presets=[f"{'x' * 95}.json"]))  # with its location's name behind

    (folder / "near_seed1.json").write_text(json.dumps({"batch_size": 8}))
    presets = ["near.json", "near_seed1.json"]
    read(write_study(folder, presets=presets))
    with pytest.raises(ValueError, match=r"a preset is called near_seed1, .*; rename the preset"):
        read(write_study(folder, presets=presets, seeds=[0, 1]))


def test_changed_options_make_another_model(folder):
    def model(jitter):
        methods = {**METHODS, "Loc": {"trainer": "LocBAMTrainer", "options": {"jitter": jitter}}}
        return list(read(write_study(folder, methods=methods)).runs.values())[1].model

    assert model(0.1) != model(0.2)
    assert model(0.1) == model(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presetz": []}, r"unknown key 'presetz' \(did you mean presets\?\)"),
        ({"methods": None}, "study.yaml: methods: is missing"),
        ({"dataset": 77}, "no dataset 77 in .*Dataset012_Small"),
        ({"name": "a b"}, "name: .* match pattern .*, got 'a b'"),
        ({"baseline": "Plane"}, r"baseline: unknown method 'Plane' \(did you mean Plain\?\)"),
        ({"methods": {"Plain": "nnUnetTrainer"}}, r"unknown trainer .* \(did you mean nnUNetTrainer\?\)"),
        ({"methods": {"Plain": "LocBMTrainer"}}, r"did you mean LocBAMTrainer\?"),
        ({"methods": {"Plain": {"trainer": "nnUNetTrainer_5epochs"}}}, "without its epochs' suffix"),
        ({"epochs": 7}, r"no trainer nnUNetTrainer_7epochs; .* 1, 5, 10, 20, 50, .* epochs"),
        ({"epochs": 5.0}, "epochs: must be a valid integer, got 5.0"),
        ({"test": "yes"}, "test: must be a valid boolean, got 'yes'"),
        ({"file": "x"}, "unknown key 'file'"),
        ({"title": 5}, "title: must be a valid string, got 5"),
        ({"evaluation": {"paper": "bpr"}}, "evaluation: paper: must be 'locbam' or 'gpe', got 'bpr'"),
        ({"evaluation": {"paper": ["gpe"]}}, r"evaluation: paper: must be 'locbam' or 'gpe', got \['gpe'\]"),
        ({"evaluation": 5}, "evaluation: .* got 5"),
        ({"methods": {"Plain": 5}}, r"methods: Plain: must be a table"),
        ({"methods": {"Plain": {"trainer": 5}}}, "Plain: trainer: must be a valid string, got 5"),
        (located(options=5), "L: options: .*, got 5"),
        (located(presets=["fra"]), r"did you mean far\?"),
        (located(sources=[]), "L: sources must name one or more"),
        (located(options={"source": "voxel"}), "L: options: the source is given by `sources`"),
        ({"seed": -1}, "seeds: 0: must be greater than or equal to 0, got -1"),
        ({"seed": True}, "seeds: 0: must be a valid integer, got True"),
        ({"seeds": []}, "seeds: .* at least 1 item"),
        ({"seeds": 2}, "seeds: must be a valid tuple, got 2"),
        ({"seeds": [1, 1]}, "seeds: has 1 twice"),
        ({"seed": 0, "seeds": [0, 1]}, r"give seed or seeds, not both; got 0 and \[0, 1\]"),
        ({"epochs": 0}, "epochs: must be greater than or equal to 1, got 0"),
        ({"methods": {**METHODS, "B": {"trainer": "nnUNetTrainer"}}}, "duplicate runs: Plain and B"),
        ({"methods": {**METHODS, "A b": "LocBAMTrainer", "A-b": "GPETrainer"}}, "written as 'A-b'"),
        (located(against="Plane"), r"L: against: unknown other method 'Plane' \(did you mean Plain\?\)"),
        (located(against="L"), "unknown other method 'L'"),
        ({"sources": ["voxle"]}, r"unknown location source 'voxle' \(did you mean voxel\?\)"),
        (located(source="voxel"), "did you mean sources"),
        ({"methods": {"Plain": {"trainer": "nnUNetTrainer", "sources": ["voxel"]}}}, "uses no location"),
        (located(options={"jiter": 1}), "jiter"),
        ({"presets": ["nearby.json"]}, "there is no file .*nearby.json"),
        ({"presets": ["patch23"]}, r"unknown preset 'patch23' \(did you mean patch32\?\)"),
        ({"presets": []}, "one or more"),
        ({"folds": [0, 5]}, r"folds \[5\] do not exist; the split has 2"),
        ({"folds": [0, 0]}, "has 0 twice"),
        ({"folders": {"raw": "no", "preprocessed": "p", "results": "r"}}, "no, which is not a folder"),
        ({"splits": "none.json"}, "no file of splits"),
        ({"device": "gpu"}, "device: must be 'cuda', 'cpu' or 'mps', got 'gpu'"),
        ({"gpus": 2}, "gpus: 2 GPUs need the device cuda"),
        ({"postprocessing": ["largest"]}, r"did you mean largest_component\?"),
        ({"robustness": {"amounts": [500]}}, "robustness: amounts: 0: must be less than .* 100, got 500"),
        ({"robustness": {"presets": ["fra"]}}, r"did you mean far\?"),
        ({"resources": {"trian": {}}}, r"did you mean train\?"),
        ({"resources": {"train": {"hours": -1}}}, "resources: train: hours: must be greater than 0, got -1"),
        ({"papers": ["table9"]}, "unknown paper's table"),
        ({"resources": {"train": {"slurm_extra": "; touch x"}}}, r"begin with -- .*, got ';', 'touch', 'x'"),
        ({"resources": {"train": {"slurm_extra": "--mail-type=END $(touch x)"}}}, r"got '\$\(touch', 'x\)'"),
        ({"resources": {"train": {"slurm_extra": "--mail-type=END & touch"}}}, "got '&', 'touch'"),
        ({"resources": {"train": {"slurm_extra": "--wrap=reboot"}}}, "not --wrap"),
        ({"resources": {"train": {"slurm_extra": "--wra reboot"}}}, "not --wrap"),
        ({"resources": {"train": {"slurm_extra": "--comment='a"}}}, "No closing quotation"),
        ({"resources": {"train": {"slurm_extra": "-N 2"}}}, "got '-N', '2'"),
        ({"resources": {"train": {"partition": "gpu;touch x"}}}, "partition: must be made of"),
        ({"resources": {"default": {"constraint": "a100'"}}}, "constraint: must be made of"),
        ({"methods": {**METHODS, "x" * 300: "GPETrainer"}}, r"xxx\.\.\., would have 306 letters, 200 are"),
        ({"name": "x" * 300}, r"plans of study\.yaml must be made of at most 100 letters"),
        ({"methods": {"  ": "GPETrainer"}}, "a method's name must be a text"),
    ],
    ids=str,
)
def test_mistakes(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        read(write_study(folder, **changes))
    assert not (folder / "work").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- a\n", "must hold a table"),
        ("methods:\n  Plain: a\n  Plain: b\n", "line 2: Plain is given twice"),
    ],
)
def test_no_table(folder, text, message):
    (folder / "study.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(folder / "study.yaml")


def test_a_preset_for_one_source(folder):
    (folder / "near.json").write_text(json.dumps({"location": {"source": "scanner"}}))
    with pytest.raises(ValueError, match=r"near is for the source scanner, but CoordConv has voxel"):
        read(write_study(folder))
    assert read(write_study(folder, sources=["scanner"])).methods[1].source == "scanner"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([{"train": ["case_0"], "val": ["case_9"]}], "cases that .* lacks: case_9"),
        ([{"train": ["case_0"], "val": ["case_0"]}], "in both parts: case_0"),
        ([{"train": [], "val": ["case_0"]}], "no cases"),
        ([{"training": []}], "must be a list of"),
    ],
)
def test_splits_that_cannot_be_used(folder, splits, message):
    (folder / "preprocessed" / DATASET / "splits_final.json").unlink()
    (folder / "mine.json").write_text(json.dumps(splits))
    with pytest.raises(ValueError, match=message):
        read(write_study(folder, splits="mine.json"))


def test_other_splits_than_nnunet_uses(folder):
    (folder / "mine.json").write_text(json.dumps([{"train": CASES[1:], "val": CASES[:1]}]))
    with pytest.raises(ValueError, match=r"splits_final\.json, which nnU-Net uses, differs"):
        read(write_study(folder, splits="mine.json"))
    (folder / "mine.json").write_text(json.dumps(SPLITS))
    read(write_study(folder, splits="mine.json"))


def test_too_few_cases_for_nnunets_folds(tmp_path):
    write_dataset(tmp_path, splits=None)
    with pytest.raises(ValueError, match=r"4 training cases, too few for nnU-Net's 5 folds"):
        read(write_study(tmp_path))


def test_studies_by_name():
    assert find_study("phantom") == REPOSITORY / "studies" / "phantom.yaml"
    with pytest.raises(ValueError, match=r"unknown study .*'phantm' \(did you mean phantom\?\)"):
        find_study("phantm")


def test_options_of_sbatch_reach_it_as_they_are_written(folder):
    asked = {"train": {"slurm_extra": "--mail-user=me@x.org --comment='two; words'"}}
    extra = read(write_study(folder, resources=asked)).resources["train"].slurm_extra
    assert extra == "--mail-user=me@x.org '--comment=two; words'"
    asked = {"train": {"constraint": "[a100|h100]&ib", "account": "lab:one", "qos": "high"}}
    assert read(write_study(folder, resources=asked)).resources["train"].constraint == "[a100|h100]&ib"


def test_methods_in_other_letters(folder):
    methods = {**METHODS, "基线": {"trainer": "LocBAMTrainer", "sources": ["voxel", "scanner"]}}
    methods |= {"Größe": "CoordConvTrainer", "方法": "GPETrainer"}
    slugs = [method.slug for method in read(write_study(folder, methods=methods)).methods]
    assert len(set(slugs)) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", slug) for slug in slugs)
    assert slugs[3] == "Gr-e"
    assert slugs[1].endswith("-voxel")
    assert slugs[1].removesuffix("-voxel") == slugs[2].removesuffix("-scanner")


def test_a_work_folder_of_something_else(folder):
    work = folder / "work"
    (work / "done").mkdir(parents=True)
    precious = work / "done" / "precious.json"
    precious.write_text("{}")
    file = write_study(folder)
    with pytest.raises(ValueError, match=r"work is .*work, which holds done and no study\.json"):
        read(file)
    (work / "study.json").write_text(json.dumps({"name": "small", "dataset": {"name": "Dataset013_Other"}}))
    with pytest.raises(ValueError, match=r"of another study \('small', dataset 'Dataset013_Other'\)"):
        read(file)
    (work / "study.json").write_text(json.dumps({"name": "small", "dataset": {"name": DATASET}}))
    read(file)
    assert precious.exists()
    with pytest.raises(ValueError, match=r"work is .*study.yaml, which is not a folder"):
        read(write_study(folder, work="study.yaml"))
    (folder / "new" / "locks").mkdir(parents=True)  # as a start leaves it that was killed at once
    read(write_study(folder, work="new"))


def test_folds_without_a_file_are_those_that_nnunet_draws(folder):
    """nnU-Net sorts the cases' names; their files sort otherwise (liver_10_0000 before liver_1_0000)."""
    (folder / "preprocessed" / DATASET / "splits_final.json").unlink()
    images = folder / "raw" / DATASET / "imagesTr"
    names = [f"liver_{number}" for number in range(23)] + CASES
    for name in names:
        (images / f"{name}_0000.nii.gz").touch()
    expected = generate_crossval_split(list(np.sort(names)), seed=12345, n_splits=5)
    made = write_splits(read(write_study(folder)))
    assert [fold["val"] for fold in made] == [list(map(str, fold["val"])) for fold in expected]

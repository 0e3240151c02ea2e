"""`locctx` as a user calls it; what the commands do in depth is tested beside their modules."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_locctx import __version__
from nnunet_locctx.cli import main
from nnunet_locctx.commands.common import print_next
from nnunet_locctx.nnunet.plans.plans_file import read_plans
from nnunet_locctx.resources import trainers_folder
from tests.nnunet.small_plans import configuration, plans

GROUPS = {
    "start": "demo check trainers methods sources plan show",
    "measure": "evaluate inspect postprocess robustness",
    "papers": "convert study report",
    "anatomy": "fit landmarks localize crop",
}
COMMANDS = " ".join(GROUPS.values()).split()
Captured = pytest.CaptureFixture[str]


def fails(arguments: list[str], capsys: Captured) -> str:
    """Runs a command that must stop with a message and nothing else; returns the message."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"locctx {arguments[0]}: error: ")
    assert "Traceback" not in printed.err
    return printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: locctx {command}" in text
    assert "example:" in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_locctx_alone_lists_the_commands_by_group(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == text
    sections = {part.split(":\n")[0]: part for part in text.split("\n\n")}
    for title, commands in GROUPS.items():
        assert re.findall(r"^  ([a-z]+)  +\S", sections[title], re.MULTILINE) == commands.split()
    assert 'export nnUNet_extTrainer="$(locctx trainers)"' in text
    assert "\033" not in text


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="there argparse has colours itself")
@pytest.mark.parametrize(
    ("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_where_a_terminal_has_them(
    variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main([]) == 0
    assert ("\033[1mstart:\033[0m" in terminal.getvalue()) == coloured
    assert ("\033[36m--version\033[0m" in terminal.getvalue()) == coloured


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("evalute", "unknown 'evalute' (did you mean evaluate?)"),
        ("fit bodypart -d 1", "unknown 'bodypart' (did you mean body-part?)"),
        ("plan --sorce voxel", "unknown option --sorce (did you mean --source?)"),
        ("trainers --moon", "unknown option --moon"),
        ("plan -d 1 --encoding freqency", "unknown 'freqency' (did you mean frequency?)"),
        ("convert amos a -d 1", "unknown 'amos' (did you mean amos22?)"),
    ],
)
def test_a_name_that_was_meant(line: str, meant: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(line.split())
    assert capsys.readouterr().err.endswith(f"{meant}\n")


def test_version(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"locctx {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["fly"], ["check"], ["check", "-d", "1", "folder"], ["show"], ["plan", "--patch", "a"]]
)
def test_wrong_usage(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: locctx" in capsys.readouterr().err


def test_trainers_prints_the_folder_alone(capsys: Captured) -> None:
    assert main(["trainers"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{trainers_folder()}\n"
    assert printed.err == ""
    assert list(trainers_folder().glob("*.py"))


def test_quick_commands_load_neither_torch_nor_nnunet() -> None:
    code = (
        "import sys; from nnunet_locctx.cli import main, build_parser; main(['trainers']); "
        "build_parser().format_help(); "
        "print([name for name in ('torch', 'nnunetv2', 'matplotlib', 'SimpleITK') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.splitlines()[-1] == "[]"


WRONG = {
    "plan -d 7 --name a --source moon": "unknown location.source 'moon'",
    "plan -d 7 --name a --source voxel --absolute": "an option of the source 'scanner'",
    "plan -d 7 --name a --axes R X": "there is no axis 'X'",
    "plan -d 7 --name a --place roof": "unknown place 'roof'",
    "plan -d 7 --name a --jitter 2": "location.jitter must be a number from 0 to 1",
    "plan -d 7 --name a --patch 16 16 0": "patch_size must be an integer >= 1, got 0",
    "plan -d 7 --name a --batch -1": "batch_size must be an integer >= 1, got -1",
    "plan -d 7 --name a --features 4 0": "features must be an integer >= 1, got 0",
    "plan -d 7 --name a --spacing 1 1 0": "spacing must be a positive number, got 0",
    "plan -d 7 --name a -c 3d_ful": "did you mean 3d_fullres?",
    "plan -d 7 --name a -p nnUnetPlans": "nnUnetPlans",
    "plan -d 7 --preset patch": "no preset or file 'patch'",
    "sources -d 7 -c 3d_ful": "did you mean 3d_fullres?",
    "sources -d 7 -np 0": "--processes must be at least 1, got 0",
    "show scan.nii.gz --source moon": "unknown location source 'moon'",
    "show scan.nii.gz --patch 4": "two or three sizes",
    "show scan.nii.gz --label none.nii.gz": "no file none.nii.gz",
    "show scan.nii.gz -o nowhere/scan.png": "there is no folder",
    "show scan.nii.gz --model nowhere": "nowhere is not the folder of a trained model",
    "show scan.nii.gz --model . --device gpu": "--device must be cpu, cuda (also cuda:1) or mps, got 'gpu'",
    "fit ape -d 8": "no dataset 8",
    "fit ape -d 7 --steps 0": "steps must be an integer >= 1, got 0",
    "fit ape -d 7 --spacing 0": "spacing must be a positive number, got 0",
    "fit ape -d 7 --option steps": "needs OPTION=VALUE, got 'steps'",
    "robustness --model . -i . -l . -o out --amounts -1": "-1",
    "robustness --model . -i . -l . -o out --name a --name b": "1 models need as many different names",
    "robustness --model . -i nowhere -l . -o out": "--images: there is no folder nowhere",
    "inspect nowhere -d 7": "PRED: there is no folder nowhere",
    "inspect . -d 7 --images nowhere": "--images: there is no folder nowhere",
    "landmarks --regressor none.pt --from scan.nii.gz --to scan.nii.gz --at 0 0 0": "no file none.pt",
    "localize scan.nii.gz --regressor none.pt --labelled . . -o out.json": "no file none.pt",
    "crop --regressor none.pt -i . --region none.npz -o out": "no file none.pt",
    "study nothing.yaml": "nothing.yaml",
    "evaluate nowhere nowhere -o out": "nowhere",
    "postprocess largest-component nowhere -o out": "nowhere",
    "convert btcv nowhere -d 3": "nowhere",
}
"""Command line -> words of what it is answered with."""


def test_bad_options_are_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset007_Tiny"
    folder.mkdir()
    planned = plans({"3d_fullres": configuration(patch_size=[16] * 3)})
    (folder / "nnUNetPlans.json").write_text(json.dumps(planned))
    (tmp_path / "scan.nii.gz").touch()
    code = (
        "import json, sys; sys.modules['torch'] = None; from nnunet_locctx.cli import main\n"
        "for line in json.load(sys.stdin): print(main(line.split()), flush=True); print('-', file=sys.stderr)"
    )
    variables = {name: str(tmp_path) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(list(WRONG)),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["2"] * len(WRONG)
    answers = dict(zip(WRONG, done.stderr.split("-\n"), strict=False))
    wrong = {line: answers[line] for line, words in WRONG.items() if words not in answers[line]}
    assert not wrong
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "Dataset007_Tiny",
        "nnUNetPlans.json",
        "scan.nii.gz",
    ]


def test_demo_is_run_in_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import nnunet_locctx.demo

    folders: list[Path] = []
    monkeypatch.setattr(nnunet_locctx.demo, "run_demo", folders.append)
    assert main(["demo", "--folder", str(tmp_path)]) == 0
    assert main(["demo"]) == 0
    assert folders == [tmp_path, Path("demo")]


def test_data_of_the_study_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    folder = tmp_path / "Dataset901_Phantom"
    folder.mkdir()  # what is there is left alone
    assert main(["demo", "--data-only"]) == 0
    text = f"the phantom: {folder}\nnext:\n  locctx study phantom --dry-run\n  locctx study phantom\n"
    assert capsys.readouterr().out == text
    assert not list(folder.iterdir())
    folder.rename(tmp_path / "Dataset901_Other")
    assert main(["demo", "--data-only"]) == 2
    assert "has Dataset901_Other, so the phantom" in capsys.readouterr().err
    assert not folder.exists()


def test_the_help_of_a_place_says_where_it_is(capsys: Captured) -> None:
    from nnunet_locctx.blocks import PLACES

    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{place}: {where}" in text for place, where in PLACES.items())


def test_what_to_type_next_begins_with_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    line = "nnUNetv2_train 3 3d_fullres 0 -tr LocCtxTrainer"
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    print_next([line])
    assert capsys.readouterr().out == f'next:\n  export nnUNet_extTrainer="$(locctx trainers)"\n  {line}\n'
    monkeypatch.setenv("nnUNet_extTrainer", f"/other{os.pathsep}{trainers_folder()}")
    print_next([line])
    assert capsys.readouterr().out == f"next:\n  {line}\n"


def test_interruption(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    import nnunet_locctx.demo

    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nnunet_locctx.demo, "run_demo", interrupt)
    assert main(["demo"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_not_enough_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    import nnunet_locctx.demo

    def fill(_: Path) -> None:
        np.empty(2**57)

    monkeypatch.setattr(nnunet_locctx.demo, "run_demo", fill)
    assert "not enough memory. Unable to allocate 1.00 EiB" in fails(["demo"], capsys)


def test_broken_pipe_that_is_not_the_output_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    import nnunet_locctx.demo

    def lose_a_worker(_: Path) -> None:
        raise BrokenPipeError("the worker is gone")

    monkeypatch.setattr(nnunet_locctx.demo, "run_demo", lose_a_worker)
    assert "the worker is gone" in fails(["demo"], capsys)


def started(arguments: list[str], **streams: Any) -> subprocess.Popen[str]:
    """`locctx` as a process of its own."""
    line = [sys.executable, "-m", "nnunet_locctx", *arguments]
    return subprocess.Popen(line, text=True, stderr=subprocess.PIPE, env=os.environ, **streams)


def test_as_a_module() -> None:
    process = started(["trainers"], stdout=subprocess.PIPE)
    assert process.communicate() == (f"{trainers_folder()}\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["plan", "--list"], 141), (["trainers"], 141), (["--help"], 0), (["show", "--help"], 0)],
)
def test_silent_when_nobody_reads(arguments: list[str], status: int) -> None:
    """As `locctx methods | head`."""
    process = started(arguments, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert (process.communicate()[1], process.returncode) == ("", status)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full here")
def test_output_to_a_full_disk_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        process = started(["trainers"], stdout=full)
        message = process.communicate()[1]
    assert message == "locctx trainers: error: [Errno 28] No space left on device\n"
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [(["check", "-d", "1"], "nnUNet_raw"), (["plan", "-d", "1", "--name", "a"], "nnUNet_preprocessed")],
)
def test_missing_variables(
    arguments: list[str], variable: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.delenv(variable)
    message = fails(arguments, capsys)
    assert f"{variable} is not set" in message
    assert f"export {variable}=" in message


def test_traceback_on_request() -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        main(["check", "/nowhere", "--traceback"])


class TestCheck:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "Dataset007_Tiny"
        content = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "a": 1},
            "numTraining": 1,
            "file_ending": ".nii.gz",
        }
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps(content))
        image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32))
        image.SetOrigin((1, 2, 3))
        sitk.WriteImage(image, str(folder / "imagesTr" / "c_0000.nii.gz"))
        sitk.WriteImage(sitk.Cast(image > 1, sitk.sitkUInt8), str(folder / "labelsTr" / "c.nii.gz"))
        monkeypatch.setenv("nnUNet_raw", str(tmp_path))
        return folder

    def test_clean(self, folder: Path, capsys: Captured) -> None:
        before = sorted(folder.rglob("*"))
        assert main(["check", "-d", "7", "--quiet"]) == 0
        printed = capsys.readouterr()
        assert "nothing suspicious found" in printed.out
        assert printed.err == ""
        assert sorted(folder.rglob("*")) == before

    def test_findings(self, folder: Path, capsys: Captured) -> None:
        (folder / "labelsTr" / "c.nii.gz").unlink()
        assert main(["check", str(folder), "--json", str(folder / "report.json")]) == 1
        assert "the label c.nii.gz is missing" in capsys.readouterr().out
        report = json.loads((folder / "report.json").read_text())
        assert report["clean"] is False
        assert report["findings"][0]["case"] == "c"

    def test_unusable_input(self, folder: Path, capsys: Captured) -> None:
        assert "there are Dataset007_Tiny" in fails(["check", "-d", "8"], capsys)
        assert "there is no folder" in fails(["check", str(folder), "--json", "/nowhere/x.json"], capsys)
        assert "is not a folder" in fails(["check", "/nowhere"], capsys)


class TestPlan:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "Dataset007_Tiny"
        folder.mkdir()
        (folder / "nnUNetPlans.json").write_text(
            json.dumps(plans({"3d_fullres": configuration(patch_size=[16] * 3), "2d": configuration(2)}))
        )
        monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
        return folder

    def added(self, folder: Path, name: str) -> dict[str, Any]:
        content: dict[str, Any] = read_plans(folder / "nnUNetPlans_locctx.json")["configurations"][name]
        return content

    def test_options_become_a_configuration(self, folder: Path, capsys: Captured) -> None:
        line = (
            "plan -d 7 --name small --patch 16 16 20 --batch 8 --features 4 6 8 --source scanner --absolute"
        )
        line += " --axes S R --place decoder --jitter 0.02 --dropout 0.1"
        line += " --encoding frequency --bands 4 --block base=2.5"
        assert main(line.split()) == 0
        added = self.added(folder, "small")
        assert added["location"] == {
            "source": "scanner",
            "absolute": True,
            "axes": ["S", "R"],
            "place": "decoder",
            "jitter": 0.02,
            "dropout": 0.1,
            "block": {"encoding": "frequency", "bands": 4, "base": 2.5},
        }
        assert (added["patch_size"], added["batch_size"], added["inherits_from"]) == (
            [16, 16, 20],
            8,
            "3d_fullres",
        )
        assert added["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 6, 8]
        text = capsys.readouterr().out
        assert "the patch sees 80% x 80% x 100% = 64% of the median volume" in text
        assert "nnUNetv2_preprocess -d 7 -plans_name nnUNetPlans_locctx -c small" in text
        assert "nnUNetv2_train 7 small 0 -p nnUNetPlans_locctx" in text
        named = text.split("trainers ")[1].split(" take it")[0]
        assert "CoordConvTrainer" in named
        # the location options are for blocks that encode location
        assert "L2GTrainer" not in named
        assert "UNETRTrainer" not in named

    def test_without_location_options_there_is_no_key(self, folder: Path) -> None:
        assert main(["plan", "-d", "7", "--name", "small", "--batch", "3"]) == 0
        assert self.added(folder, "small") == {"inherits_from": "3d_fullres", "batch_size": 3}

    def test_options_of_a_whole_network(self, folder: Path, capsys: Captured) -> None:
        line = "plan -d 7 --name own --patch 16 144 144 --network hidden_size=96 --network num_heads=4"
        assert main(line.split()) == 0
        added = self.added(folder, "own")
        assert added == {
            "inherits_from": "3d_fullres",
            "patch_size": [16, 144, 144],
            "network": {"hidden_size": 96, "num_heads": 4},
        }
        text = capsys.readouterr().out
        assert "network         {'hidden_size': 96, 'num_heads': 4}" in text
        assert "UNETRTrainer, " in text.split("trainers ")[1].split(" take it")[0]
        assert "CoordConvTrainer" not in text
        assert "-tr UNETRTrainer" in text

    def test_network_alone_frees_the_patch(self, folder: Path, tmp_path: Path) -> None:
        preset = tmp_path / "mine.json"
        preset.write_text(json.dumps({"network": {"num_heads": 6}}))
        assert main(["plan", "-d", "7", "--name", "a", "--patch", "16", "144", "144", "--network"]) == 0
        assert self.added(folder, "a")["network"] == {}
        assert main(["plan", "-d", "7", "--preset", str(preset), "--network", "hidden_size=96"]) == 0
        assert self.added(folder, "3d_fullres_mine")["network"] == {"num_heads": 6, "hidden_size": 96}

    @pytest.mark.parametrize(
        ("labels", "trainer"),
        [
            ({"background": 0, "left_lung": 1, "right_lung": 2}, "LocCtxTrainer_noMirroring"),
            ({"background": 0, "lung": 1}, "LocCtxTrainer"),
        ],
    )
    def test_from_training_to_inspection_without_mirroring_where_classes_are_sides(
        self,
        folder: Path,
        labels: dict[str, int],
        trainer: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: Captured,
    ) -> None:
        monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
        (folder / "nnUNetPlans_3d").mkdir()
        assert main(["plan", "-d", "7", "--name", "small", "--batch", "3"]) == 0
        text = capsys.readouterr().out
        assert text.partition("next:\n")[2] == (
            f"  nnUNetv2_train 7 small 0 -p nnUNetPlans_locctx -tr {trainer}\n"
            f"  nnUNetv2_predict -d 7 -c small -f 0 -p nnUNetPlans_locctx -tr {trainer} "
            "-i $nnUNet_raw/Dataset007_Tiny/imagesTs -o predictions\n"
            "  locctx inspect predictions -d 7\n"
        )
        assert ("left_lung, right_lung" in text) == (trainer != "LocCtxTrainer")
        assert recursive_find_trainer_class_by_name(trainer).__name__ == trainer

    def test_a_subclass_in_a_later_folder_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its name looks like one of ours with a suffix that does not exist."""
        monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
        with pytest.raises(ValueError, match="suffix '_slow' is unknown or repeated"):
            recursive_find_trainer_class_by_name("LocCtxTrainer_slow")
        (tmp_path / "mine.py").write_text(
            "from nnunet_locctx.nnunet.training.trainers import LocCtxTrainer\n\n\n"
            "class LocCtxTrainer_slow(LocCtxTrainer):\n    pass\n"
        )
        monkeypatch.setenv("nnUNet_extTrainer", f"{trainers_folder()}{os.pathsep}{tmp_path}")
        assert recursive_find_trainer_class_by_name("LocCtxTrainer_slow").__module__ == "mine"

    def test_preprocessed_data_needs_no_preprocessing(self, folder: Path, capsys: Captured) -> None:
        (folder / "nnUNetPlans_3d").mkdir()
        assert main(["plan", "-d", "7", "--name", "small", "--batch", "3"]) == 0
        assert "nnUNetv2_preprocess" not in capsys.readouterr().out
        assert main(["plan", "-d", "7", "--name", "fine", "--spacing", "1", "1", "1"]) == 0
        assert "nnUNetv2_preprocess" in capsys.readouterr().out

    def test_preset_with_changes(self, folder: Path) -> None:
        line = "plan -d 7 --preset patch32_robust --batch 3 --dropout 0.5"
        assert main(line.split()) == 0
        added = self.added(folder, "3d_fullres_patch32_robust")
        assert (added["patch_size"], added["batch_size"]) == ([32, 32, 32], 3)
        assert added["location"] == {"source": "voxel", "jitter": 0.02, "dropout": 0.5}

    def test_several_presets(self, folder: Path, capsys: Captured) -> None:
        line = "plan -d 7 --preset locbam_lowres_small locbam_lowres_large locbam_iso_small --keep-topology"
        assert main(line.split()) == 0
        text = capsys.readouterr().out
        for preset in ("lowres_small", "lowres_large", "iso_small"):
            assert self.added(folder, f"3d_fullres_locbam_{preset}")["batch_dice"] is True
            assert f"configuration 3d_fullres_locbam_{preset}" in text
        # equal voxels are preprocessed once
        own = "-plans_name nnUNetPlans_locctx -c 3d_fullres_locbam"
        preprocessing = [line for line in text.splitlines() if "nnUNetv2_preprocess " in line]
        assert [line.split(own)[1] for line in preprocessing] == ["_lowres_small", "_iso_small"]
        assert text.count("nnUNetv2_train 7 3d_fullres_locbam_") == 3

    def test_warnings_of_a_preset(self, folder: Path, capsys: Captured) -> None:
        assert main(["plan", "-d", "7", "--preset", "locbam_iso_large_body_part", "--keep-topology"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "warning The preset is for CT; no channel of the scans is normalised as CT" in text
        assert (
            "warning The patch is longer than the median volume along axis 0 (128 voxels, the volume has 40)"
            in text
        )
        lines = text[text.index("next:") :].split()
        assert lines.index("fit") < lines.index("nnUNetv2_preprocess") < lines.index("nnUNetv2_train")
        assert "locctx fit body-part -d 7 nnUNetv2_preprocess" in text

    def test_no_warning_without_need(self, folder: Path, capsys: Captured) -> None:
        assert main(["plan", "-d", "7", "--preset", "patch16"]) == 0
        text = capsys.readouterr().out
        assert "\nwarning " not in text
        assert "coverage        51.2% (PtVC: voxels of the patch / voxels of the volume)" in text
        assert "GPU memory      less than 1 GB for the planned U-Net, by nnU-Net's planning rule" in text

    def test_own_names(self, folder: Path) -> None:
        line = "plan -d Dataset007_Tiny -c 2d --name flat --batch 3 --plans-name mine"
        assert main(line.split()) == 0
        assert read_plans(folder / "mine.json")["configurations"]["flat"]["inherits_from"] == "2d"

    @pytest.mark.parametrize("name", ["sub/mine", "../mine", "a__b"])
    def test_names_of_plans_are_no_paths(self, name: str, folder: Path, capsys: Captured) -> None:
        before = sorted(folder.parent.rglob("*"))
        line = f"plan -d Dataset007_Tiny -c 2d --name flat --batch 3 --plans-name {name}"
        assert main(line.split()) == 2
        assert f"got {name!r}" in capsys.readouterr().err
        assert sorted(folder.parent.rglob("*")) == before

    def test_list_of_presets(self, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
        monkeypatch.delenv("nnUNet_preprocessed")
        assert main(["plan", "--list"]) == 0
        assert "patch32 " in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("--name a", "which dataset?"),
            ("-d 7 --batch 2", "needs a name: --name"),
            ("-d 9 --name a", "no dataset 9"),
            ("-d 7 --name a -p other", "there are nnUNetPlans"),
            ("-d 7 --preset patch16 patch32 --name a", "--name is for one preset, got patch16, patch32"),
            ("-d 7 --name a --block bands", "--block needs OPTION=VALUE, got 'bands'"),
            ("-d 7 --name a --network heads", "--network needs OPTION=VALUE, got 'heads'"),
            ("-d 7 --name a --patch 16 144 144", "add --network"),
        ],
    )
    def test_unusable_input(self, folder: Path, line: str, words: str, capsys: Captured) -> None:
        assert words in fails(["plan", *line.split()], capsys)
        assert [file.name for file in folder.iterdir()] == ["nnUNetPlans.json"]

    def test_force(self, folder: Path, capsys: Captured) -> None:
        assert main(["plan", "-d", "7", "--name", "a", "--batch", "3"]) == 0
        assert main(["plan", "-d", "7", "--name", "a", "--batch", "3"]) == 0
        assert "unchanged:" in capsys.readouterr().out
        assert "differs in batch_size" in fails(["plan", "-d", "7", "--name", "a", "--batch", "4"], capsys)
        assert main(["plan", "-d", "7", "--name", "a", "--batch", "4", "--force"]) == 0
        assert self.added(folder, "a")["batch_size"] == 4


class TestShow:
    @pytest.fixture
    def image(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        array = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "scan_0000.nii.gz"))
        monkeypatch.chdir(tmp_path)
        return tmp_path / "scan_0000.nii.gz"

    def test_picture(self, image: Path, capsys: Captured) -> None:
        line = "--patch 4 4 4 --source scanner --at 0 0.1 0 --window 0 1"
        assert main(["show", str(image), *line.split()]) == 0
        assert capsys.readouterr().out == "wrote scan_0000.location.png\n"
        assert (image.parent / "scan_0000.location.png").is_file()

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("--fold 0", "need --model"),
            ("--model . --source voxel", "are read from the model"),
            ("--source body_part", "or the dataset that it was fitted on: -d"),
            ("--regressor nothing.pt", "the source 'voxel' takes no --regressor"),
            ("--source body --regressor nothing.pt", "no file nothing.pt"),
            ("--absolute", "absolute"),
            ("-o /nowhere/x.png", "there is no folder"),
            ("-o x.xyz", "must end in one of"),
            ("--at 0 0 3", "outside the volume"),
            ("--window 40 0", "a level and a width above 0, got 40 0"),
            ("--dataset-json nothing.json", "dataset.json cannot be read"),
            ("-d 7", "nnUNet_raw"),
            ("-d 7 --model .", "are read from the model"),
        ],
    )
    def test_unusable_input(self, image: Path, line: str, words: str, capsys: Captured) -> None:
        assert words in fails(["show", str(image), *line.split()], capsys)
        assert [file.name for file in image.parent.iterdir()] == [image.name]

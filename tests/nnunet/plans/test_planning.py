import json
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_locctx.nnunet.plans import planning
from nnunet_locctx.nnunet.plans.planning import (
    add_configuration,
    check_location,
    coverage,
    plan_configuration,
    plan_configurations,
    read_plans,
    resolve,
)
from nnunet_locctx.nnunet.plans.suitability import suitable_trainers
from tests.nnunet.small_plans import architecture, configuration, plans


@pytest.fixture
def planned() -> dict[str, Any]:
    """Plans as nnU-Net makes them for a larger dataset: patches of 64 voxels, a cascade."""
    fullres = configuration(
        patch_size=[64, 64, 64],
        median_image_size_in_voxels=[100.0, 120.0, 80.0],
        spacing=[2.0, 1.0, 1.0],
        architecture=architecture(3, features=(4, 8, 16, 32, 32)),
    )
    lowres = {
        **deepcopy(fullres),
        "data_identifier": "nnUNetPlans_3d_lowres",
        "next_stage": "3d_cascade_fullres",
    }
    return plans(
        {
            "2d": configuration(2, patch_size=[16, 16]),
            "3d_lowres": lowres,
            "3d_fullres": fullres,
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        }
    )


def test_only_what_changes_is_written(planned: dict[str, Any]) -> None:
    before = deepcopy(planned)
    made = add_configuration(planned, "3d_fullres", "small", batch_size=5)
    assert planned == before
    assert made["configurations"]["small"] == {"inherits_from": "3d_fullres", "batch_size": 5}
    assert resolve(made, "small")["patch_size"] == [64, 64, 64]
    # the same preprocessed data serves both
    assert resolve(made, "small")["data_identifier"] == "nnUNetPlans_3d"


def test_new_patch_brings_its_own_pooling(planned: dict[str, Any]) -> None:
    small = resolve(add_configuration(planned, "3d_fullres", "small", patch_size=[16, 32, 32]), "small")
    kwargs = small["architecture"]["arch_kwargs"]
    assert small["patch_size"] == [16, 32, 32]
    # 2 mm slices: pooled two times, rows and columns three times
    assert torch.tensor(kwargs["strides"]).prod(dim=0).tolist() == [4, 8, 8]
    assert kwargs["n_stages"] == len(kwargs["features_per_stage"]) == len(kwargs["n_conv_per_stage"]) == 4
    assert kwargs["features_per_stage"] == [4, 8, 16, 32]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("base", "patch", "spacing"),
    [("3d_fullres", [16, 32, 32], None), ("3d_fullres", None, [4.0, 2.0, 1.0]), ("2d", [32, 16], None)],
)
def test_planned_networks_run(
    planned: dict[str, Any], residual: bool, base: str, patch: list[int] | None, spacing: list[float] | None
) -> None:
    rank = len(planned["configurations"][base]["patch_size"])
    planned["configurations"][base]["architecture"] = architecture(rank, residual, features=(4, 8, 16))
    made = add_configuration(planned, base, "new", patch_size=patch, spacing=spacing)
    manager = PlansManager(made).get_configuration("new")
    network = get_network_from_plans(
        manager.network_arch_class_name,
        manager.network_arch_init_kwargs,
        manager.network_arch_init_kwargs_req_import,
        1,
        2,
        deep_supervision=False,
    )
    with torch.no_grad():
        assert network(torch.zeros(2, 1, *manager.patch_size)).shape == (2, 2, *manager.patch_size)


def test_patch_that_pooling_does_not_divide(planned: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match="stride \\[4, 8, 8\\]; nearest allowed: \\[16, 32, 32\\] or \\[16, 28, 28\\]"
    ):
        add_configuration(planned, "3d_fullres", "small", patch_size=[16, 31, 31])


def test_keeping_the_pooling(planned: dict[str, Any]) -> None:
    made = add_configuration(planned, "3d_fullres", "small", patch_size=[32, 32, 32], keep_topology=True)
    assert "architecture" not in made["configurations"]["small"]
    with pytest.raises(
        ValueError, match="stride \\[16, 16, 16\\]; nearest allowed: \\[32, 32, 32\\] or \\[32, 32, 16\\]"
    ):
        add_configuration(planned, "3d_fullres", "small", patch_size=[32, 32, 24], keep_topology=True)


def test_new_spacing_needs_its_own_data(planned: dict[str, Any]) -> None:
    made = add_configuration(planned, "3d_fullres", "coarse", spacing=[4, 2, 3])
    coarse = made["configurations"]["coarse"]
    assert coarse["data_identifier"] == "nnUNetPlans_4x2x3mm"
    assert coarse["median_image_size_in_voxels"] == [50, 60, 27]
    # no larger than the volume, rounded up to what the pooling needs
    assert coarse["patch_size"] == [56, 64, 28]
    assert coarse["spacing"] == [4.0, 2.0, 3.0]


def test_same_spacing_shares_the_data(planned: dict[str, Any]) -> None:
    made = add_configuration(planned, "3d_fullres", "same", spacing=[2.0, 1.0, 1.0])
    assert made["configurations"]["same"] == {"inherits_from": "3d_fullres"}


def test_a_configuration_can_build_on_an_added_one(planned: dict[str, Any]) -> None:
    made = add_configuration(
        planned, "3d_fullres", "coarse", spacing=[4, 2, 3], location={"source": "scanner"}
    )
    made = add_configuration(made, "coarse", "coarse_jitter", location={"jitter": 0.1})
    full = resolve(made, "coarse_jitter")
    assert full["location"] == {"source": "scanner", "jitter": 0.1}
    assert full["data_identifier"] == "nnUNetPlans_4x2x3mm"


def test_equal_voxels_are_preprocessed_once(planned: dict[str, Any]) -> None:
    made = add_configuration(planned, "3d_fullres", "a", spacing=[4, 2, 3])
    made = add_configuration(made, "3d_fullres", "b", spacing=[4, 2, 3], patch_size=[16, 32, 16])
    made = add_configuration(made, "3d_fullres", "c", spacing=[4, 2, 3.1])
    identifiers = {name: resolve(made, name)["data_identifier"] for name in made["configurations"]}
    assert identifiers["a"] == identifiers["b"] == "nnUNetPlans_4x2x3mm"
    assert identifiers["c"] == "nnUNetPlans_4x2x3.1mm"
    # in nnU-Net's own configurations too
    made["configurations"]["3d_lowres"]["spacing"] = [5.0, 5.0, 5.0]
    made = add_configuration(made, "3d_fullres", "d", spacing=[5, 5, 5])
    assert made["configurations"]["d"]["data_identifier"] == "nnUNetPlans_3d_lowres"


@pytest.mark.parametrize(
    "change",
    [
        {"normalization_schemes": ["CTNormalization"]},
        {"use_mask_for_norm": [True]},
        {"resampling_fn_data": "resample_torch_fornnunet"},
        {"preprocessor_name": "OtherPreprocessor"},
    ],
)
def test_other_intensities_or_resampling_never_share_data(
    planned: dict[str, Any], change: dict[str, Any]
) -> None:
    planned["configurations"]["other"] = {"inherits_from": "3d_fullres", **change}
    made = add_configuration(planned, "3d_fullres", "a", spacing=[4, 2, 3])
    made = add_configuration(made, "other", "b", spacing=[4, 2, 3])
    assert resolve(made, "a")["data_identifier"] == "nnUNetPlans_4x2x3mm"
    assert resolve(made, "b")["data_identifier"] == "nnUNetPlans_4x2x3mm_b"


def test_a_replaced_spacing_does_not_keep_the_old_data(planned: dict[str, Any]) -> None:
    made = add_configuration(planned, "3d_fullres", "a", spacing=[4, 2, 3])
    made = add_configuration(made, "3d_fullres", "a", spacing=[4, 2, 2], overwrite=True)
    assert made["configurations"]["a"]["data_identifier"] == "nnUNetPlans_4x2x2mm"


def test_location_is_checked_and_kept(planned: dict[str, Any]) -> None:
    location = {
        "source": "scanner",
        "absolute": True,
        "place": "encoder",
        "block": {"encoding": "frequency", "bands": 3},
    }
    made = add_configuration(planned, "3d_fullres", "small", location=location)
    assert made["configurations"]["small"]["location"] == location
    more = add_configuration(made, "small", "more", location={"block": {"bands": 4}})
    assert more["configurations"]["more"]["location"] == {
        **location,
        "block": {"encoding": "frequency", "bands": 4},
    }


def test_a_network_of_its_own_is_not_bound_to_the_planned_pooling(planned: dict[str, Any]) -> None:
    patch = [16, 144, 144]  # nnU-Net pools 144 five times, UNETR needs multiples of 16
    planned["configurations"]["3d_fullres"]["architecture"] = architecture(3, features=(4,) * 6)
    with pytest.raises(ValueError, match="not divisible by the network's total stride"):
        add_configuration(planned, "3d_fullres", "own", patch_size=patch)
    made = add_configuration(planned, "3d_fullres", "own", patch_size=patch, network={})
    assert made["configurations"]["own"] == {
        "inherits_from": "3d_fullres",
        "network": {},
        "patch_size": patch,
    }
    suitable = suitable_trainers(resolve(made, "own"))
    assert {"UNETRTrainer", "GPEUNETRTrainer"} <= set(suitable.names)
    assert "PriorHeadTrainer" not in suitable.names
    again = add_configuration(made, "own", "larger", patch_size=[32, 144, 144])
    assert "architecture" not in again["configurations"]["larger"]


def test_a_patch_that_fits_the_pooling_is_for_both(planned: dict[str, Any]) -> None:
    made = add_configuration(planned, "3d_fullres", "both", patch_size=[16, 32, 32], network={})
    assert resolve(made, "both")["architecture"]["arch_kwargs"]["n_stages"] == 4
    assert {"UNETRTrainer", "PriorHeadTrainer"} <= set(suitable_trainers(resolve(made, "both")).names)


def test_network_options_are_laid_over_the_bases_and_checked(planned: dict[str, Any]) -> None:
    made = add_configuration(planned, "3d_fullres", "a", network={"hidden_size": 96, "num_heads": 4})
    made = add_configuration(made, "a", "b", network={"num_heads": 6})
    full = resolve(made, "b")
    assert full["network"] == {"hidden_size": 96, "num_heads": 6}
    suitable = suitable_trainers(full)
    assert {"UNETRTrainer", "GPEUNETRTrainer"} <= set(suitable.names)
    assert not {"PriorHeadTrainer", "nnFormerTrainer"} & set(suitable.names)
    assert "takes no 'network' options" in suitable.explained()


def test_location_of_the_network_decides_between_twins(planned: dict[str, Any]) -> None:
    made = add_configuration(planned, "3d_fullres", "a", network={"hidden_size": 96, "encoding": "frequency"})
    names = suitable_trainers(resolve(made, "a")).names
    assert "GPEUNETRTrainer" in names
    assert "UNETRTrainer" not in names


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": 3}, "network must be a table of options, got 3"),
        ({"network": {"speed": 1}}, "no trainer takes this configuration.*does not take speed"),
        (
            {"network": {}, "patch_size": [17, 17, 17]},
            "no trainer takes this.*nearest allowed: \\[16, 16, 16\\]",
        ),
        (
            {"network": {"hidden_size": 96}, "location": {"place": "decoder"}},
            "no trainer takes this configuration",
        ),
    ],
)
def test_networks_that_no_trainer_has(planned: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        add_configuration(planned, "3d_fullres", "own", **changes)


def test_networks_arguments_are_replaced(planned: dict[str, Any]) -> None:
    made = add_configuration(
        planned,
        "3d_fullres",
        "thin",
        patch_size=[16, 32, 32],
        architecture={"features_per_stage": [2, 4, 6, 8]},
    )
    assert resolve(made, "thin")["architecture"]["arch_kwargs"]["features_per_stage"] == [2, 4, 6, 8]


def test_a_cascade_learns_about_its_new_stage(planned: dict[str, Any]) -> None:
    made = add_configuration(planned, "3d_cascade_fullres", "small_cascade", patch_size=[16, 32, 32])
    assert made["configurations"]["3d_lowres"]["next_stage"] == ["3d_cascade_fullres", "small_cascade"]
    assert PlansManager(made).get_configuration("small_cascade").previous_stage_name == "3d_lowres"
    again = add_configuration(made, "3d_cascade_fullres", "small_cascade", patch_size=[16, 32, 32])
    assert again == made


def test_networks_without_planned_pooling_keep_their_architecture(planned: dict[str, Any]) -> None:
    transformer = {
        "network_class_name": "some.Transformer",
        "arch_kwargs": {"depth": 4},
        "_kw_requires_import": [],
    }
    planned["configurations"]["3d_fullres"]["architecture"] = transformer
    made = add_configuration(planned, "3d_fullres", "small", patch_size=[31, 31, 31])
    assert made["configurations"]["small"] == {"inherits_from": "3d_fullres", "patch_size": [31, 31, 31]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"base": "3d"},
            "unknown configuration of the plans: '3d'; there are 2d, 3d_lowres, 3d_fullres, 3d_cascade_fullres",
        ),
        ({"name": "a b"}, "the configuration's name must be made of at most 100 letters"),
        ({"name": "3d_fullres"}, "cannot inherit from itself"),
        ({"patch_size": [32, 32]}, "patch_size needs 3 numbers for '3d_fullres', got \\[32, 32\\]"),
        ({"patch_size": [32, 32, 0]}, "patch_size must be made of whole numbers above 0, got 0"),
        ({"patch_size": [32, 32, 31.5]}, "whole numbers above 0, got 31.5"),
        ({"patch_size": [4, 4, 4]}, "patch_size \\[4, 4, 4\\] is too small: it can be pooled 0 times"),
        ({"patch_size": [8, 8, 14]}, "it can be pooled 1 times, and nnU-Net's deep supervision needs 2"),
        ({"batch_size": 0}, "batch_size must be made of whole numbers above 0, got 0"),
        ({"batch_size": True}, "got True"),
        ({"spacing": [1, 1]}, "spacing must be 3 numbers above 0, got \\[1, 1\\]"),
        ({"spacing": [1, 1, float("nan")]}, "spacing must be 3 numbers above 0"),
        ({"spacing": [1, -1, 1]}, "spacing must be 3 numbers above 0"),
        (
            {"location": {"source": "moon"}},
            "unknown location.source 'moon'; there are anatomical, body, body_part, scanner, voxel",
        ),
        ({"location": {"colour": 1}}, "does not take colour"),
        ({"location": {"place": "nose"}}, "unknown place 'nose'"),
        ({"location": {"block": {"speed": 1}}}, "no block takes these location options.*speed"),
        ({"architecture": {"speed": 1}}, "the planned network does not take speed; allowed: n_stages"),
        (
            {"architecture": {"features_per_stage": [1, 2]}},
            "one entry for each of the network's 5 stages, got \\[1, 2\\]",
        ),
    ],
)
def test_values_that_are_not_allowed(planned: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"base": "3d_fullres", "name": "new", **changes}
    with pytest.raises(ValueError, match=words):
        add_configuration(planned, **arguments)


def test_inheritance_in_a_circle(planned: dict[str, Any]) -> None:
    planned["configurations"]["a"] = {"inherits_from": "b"}
    planned["configurations"]["b"] = {"inherits_from": "a"}
    with pytest.raises(ValueError, match="Circular dependency"):
        add_configuration(planned, "a", "new")


def test_a_different_configuration_is_not_replaced(planned: dict[str, Any]) -> None:
    made = add_configuration(planned, "3d_fullres", "small", batch_size=5)
    assert add_configuration(made, "3d_fullres", "small", batch_size=5) == made
    with pytest.raises(ValueError, match="already have a configuration 'small' that differs in batch_size"):
        add_configuration(made, "3d_fullres", "small", batch_size=6)
    replaced = add_configuration(made, "3d_fullres", "small", batch_size=6, overwrite=True)
    assert replaced["configurations"]["small"]["batch_size"] == 6


def test_which_blocks_take_an_option() -> None:
    assert {"coordconv", "locbam", "prior"} <= set(check_location({"source": "voxel"}))
    assert check_location({"block": {"faithful": True}}) == ["locbam"]


def test_coverage() -> None:
    seen = coverage(
        {"patch_size": [16, 32, 32], "median_image_size_in_voxels": [16, 64, 96], "spacing": [3, 1, 1]}
    )
    assert seen.fraction == pytest.approx((1, 1 / 2, 1 / 3))
    assert seen.patch_to_volume == pytest.approx(1 / 6)
    assert "coverage        16.7% (PtVC" in str(seen)
    # windows move by half a patch: 1, 3 and 5 positions
    assert seen.patches == 15
    assert "100% x 50% x 33% = 16.7% of the median volume" in str(seen)
    assert "16 x 32 x 32 voxels = 48 x 32 x 32 mm" in str(seen)


def test_coverage_of_a_patch_larger_than_the_volume() -> None:
    seen = coverage({"patch_size": [32, 32], "median_image_size_in_voxels": [20, 32], "spacing": [1, 1]})
    assert seen.fraction == (1, 1)
    assert seen.patch_to_volume == pytest.approx(1.6)
    assert "coverage        160% (PtVC" in str(seen)
    assert seen.patches == 1
    assert "median slice" in str(seen)


class TestPlanConfiguration:
    @pytest.fixture
    def folder(self, planned: dict[str, Any], tmp_path: Path) -> Path:
        (tmp_path / "nnUNetPlans.json").write_text(json.dumps(planned))
        return tmp_path

    def test_the_original_is_never_changed(self, folder: Path) -> None:
        before = (folder / "nnUNetPlans.json").read_bytes()
        made, changed = plan_configuration(folder, "nnUNetPlans", "3d_fullres", "small", batch_size=3)
        assert changed
        assert (folder / "nnUNetPlans.json").read_bytes() == before
        assert read_plans(folder / "nnUNetPlans_locctx.json") == made
        assert made["plans_name"] == "nnUNetPlans_locctx"

    def test_configurations_gather_in_one_file(self, folder: Path) -> None:
        plan_configuration(folder, "nnUNetPlans", "3d_fullres", "a", batch_size=3)
        plan_configuration(folder, "nnUNetPlans", "3d_fullres", "b", batch_size=4)
        made, _ = plan_configuration(folder, "nnUNetPlans_locctx", "a", "c", batch_size=5)
        assert {"a", "b", "c"} < set(made["configurations"])
        assert not (folder / "nnUNetPlans_locctx_locctx.json").exists()
        assert not plan_configuration(folder, "nnUNetPlans", "3d_fullres", "a", batch_size=3)[1]

    def test_own_data_carries_the_own_name(self, folder: Path) -> None:
        made, _ = plan_configuration(
            folder, "nnUNetPlans", "3d_fullres", "coarse", own_plans_name="mine", spacing=[4, 4, 4]
        )
        assert made["configurations"]["coarse"]["data_identifier"] == "mine_4x4x4mm"

    def test_several_at_once_or_none(self, folder: Path) -> None:
        several = {"a": {"batch_size": 3}, "b": {"spacing": [4, 4, 4]}}
        made, _ = plan_configurations(folder, "nnUNetPlans", "3d_fullres", several)
        assert {"a", "b"} < set(read_plans(folder / "nnUNetPlans_locctx.json")["configurations"])
        with pytest.raises(ValueError, match="batch_size"):
            plan_configurations(
                folder, "nnUNetPlans", "3d_fullres", {"c": {"batch_size": 3}, "d": {"batch_size": 0}}
            )
        assert read_plans(folder / "nnUNetPlans_locctx.json") == made

    def test_nothing_is_written_for_wrong_input(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"location\.source"):
            plan_configuration(folder, "nnUNetPlans", "3d_fullres", "small", location={"source": "x"})
        assert [path.name for path in folder.iterdir()] == ["nnUNetPlans.json"]

    def test_names_of_the_original_stay_its_own(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="'2d' is a configuration of 'nnUNetPlans' itself"):
            plan_configuration(folder, "nnUNetPlans", "3d_fullres", "2d", force=True)

    def test_plans_of_others_are_left_alone(self, folder: Path, planned: dict[str, Any]) -> None:
        (folder / "theirs.json").write_text(json.dumps({**planned, "plans_name": "theirs"}))
        for own in ("theirs", "nnUNetPlans"):
            with pytest.raises(ValueError, match="left alone"):
                plan_configuration(folder, "nnUNetPlans", "3d_fullres", "a", own_plans_name=own, force=True)

    def test_an_original_planned_anew(self, folder: Path, planned: dict[str, Any]) -> None:
        plan_configuration(folder, "nnUNetPlans", "3d_fullres", "a", batch_size=3)
        planned["configurations"]["3d_fullres"]["batch_size"] = 9
        (folder / "nnUNetPlans.json").write_text(json.dumps(planned))
        with pytest.raises(ValueError, match="made anew"):
            plan_configuration(folder, "nnUNetPlans", "3d_fullres", "b", batch_size=4)
        made, _ = plan_configuration(
            folder, "nnUNetPlans", "3d_fullres", "b", patch_size=[32, 32, 32], force=True
        )
        assert resolve(made, "b")["batch_size"] == 9
        assert made["configurations"]["a"]["batch_size"] == 3


def test_dice_of_the_batch(planned: dict[str, Any]) -> None:
    added = add_configuration(planned, "3d_fullres", "small", patch_size=(32, 32, 32), batch_dice=True)
    assert resolve(added, "small")["batch_dice"] is True
    assert "batch_dice" not in add_configuration(planned, "3d_fullres", "same")["configurations"]["same"]
    with pytest.raises(ValueError, match="batch_dice must be true or false, got 'yes'"):
        add_configuration(planned, "3d_fullres", "small", batch_dice="yes")  # type: ignore[arg-type]


def test_what_two_add_at_once_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plans({"3d_fullres": configuration()})))
    write = planning.write_plans

    def slow(*arguments: Any) -> bool:
        time.sleep(0.1)  # long enough for the others to have read
        return write(*arguments)

    monkeypatch.setattr(planning, "write_plans", slow)
    names = [f"added_{number}" for number in range(4)]
    with ThreadPoolExecutor(len(names)) as pool:
        for answer in [
            pool.submit(plan_configuration, tmp_path, "nnUNetPlans", "3d_fullres", name, batch_size=1)
            for name in names
        ]:
            assert answer.result()[1]
    content = read_plans(tmp_path / "nnUNetPlans_locctx.json")
    assert sorted(content["configurations"]) == ["3d_fullres", *names]

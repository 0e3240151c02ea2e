import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_locctx.nnunet.plans.misfits import misfits
from nnunet_locctx.nnunet.plans.presets import MadeFor
from nnunet_locctx.nnunet.plans.suitability import Suitability
from tests.nnunet.small_plans import architecture, configuration, plans

CT = MadeFor(modality="CT", channels=1)
MR = MadeFor(modality="MR", channels=4)


def messages(
    folder: Path,
    made_for: MadeFor | None = None,
    measured: tuple[float, ...] = (2.0, 2.0, 2.0),
    suitable: Suitability | None = None,
    **changes: Any,
) -> list[str]:
    """The warnings about a configuration of 16^3 patches and 2 mm voxels, changed."""
    base: dict[str, Any] = {
        "patch_size": [16, 16, 16],
        "normalization_schemes": ["CTNormalization"],
        "architecture": architecture(3),
        **changes,
    }
    made = plans({"3d_fullres": configuration(**base)})
    made["original_median_spacing_after_transp"] = list(measured)
    configured = made["configurations"]["3d_fullres"]
    return misfits(folder, made, configured, suitable or Suitability(), made_for)


def describe(folder: Path, cases: int = 30, channels: tuple[str, ...] = ("CT",)) -> None:
    names = {str(number): name for number, name in enumerate(channels)}
    (folder / "dataset.json").write_text(json.dumps({"numTraining": cases, "channel_names": names}))


def test_nothing_to_say(tmp_path: Path) -> None:
    assert messages(tmp_path, CT) == []  # nnU-Net's dataset.json is not needed
    describe(tmp_path, cases=6)
    assert messages(tmp_path, CT) == []
    assert messages(tmp_path) == []


def test_patches_longer_than_the_volume(tmp_path: Path) -> None:
    # 20 voxels; nnU-Net itself rounds up to the pooling's 4, so up to 20 is usual, and 24 for 21 voxels
    assert messages(tmp_path, patch_size=[20, 16, 16]) == []
    assert messages(tmp_path, patch_size=[24, 16, 16], median_image_size_in_voxels=[21, 20, 20]) == []
    (sentence,) = messages(tmp_path, patch_size=[16, 24, 16])
    assert "longer than the median volume along axis 1 (24 voxels, the volume has 20): the" in sentence
    (sentence,) = messages(tmp_path, patch_size=[24, 24, 16])
    assert "along axis 0 (24 voxels, the volume has 20), 1 (24 voxels, " in sentence


@pytest.mark.parametrize(
    ("spacing", "measured", "upsampling", "words"),
    [
        ((1.0, 1.0, 1.0), (2.0, 0.6, 2.0), 2.0, []),
        ((1.0, 1.0, 1.0), (3.0, 1.0, 1.0), 2.0, ["Axis 0 is resampled from 3 mm (median of the scans) to 1 mm: 3"]),
        ((1.0, 1.0, 1.0), (5.0, 1.0, 1.0), 5.0, []),
        ((1.0, 1.0, 1.0), (6.0, 1.0, 1.0), 5.0, ["6 times as many voxels as were measured"]),
        ((2.0, 1.5, 1.5), (3.0, 0.7578, 0.7578), 2.0, []),  # LocBAM's low resolution on BTCV
        ((2.0, 1.5, 1.5), (2.0, 0.7, 0.5), 2.0, ["Axis 1 is resampled from 0.7 mm", "Axis 2 is resampled from 0.5 mm"]),
    ],
)  # fmt: skip
def test_voxels_much_finer_or_coarser_than_the_scans(
    tmp_path: Path, spacing: Any, measured: Any, upsampling: float, words: list[str]
) -> None:
    sentences = messages(tmp_path, MadeFor(upsampling=upsampling), measured, spacing=list(spacing))
    assert len(sentences) == len(words)
    assert all(word in sentence for word, sentence in zip(words, sentences, strict=True))


def test_two_dimensional_configurations_are_measured_in_their_two_axes(tmp_path: Path) -> None:
    flat: dict[str, Any] = {
        "patch_size": [16, 16],
        "spacing": [1.0, 1.0],
        "median_image_size_in_voxels": [20, 20],
        "architecture": architecture(2),
    }
    assert messages(tmp_path, measured=(9.0, 1.0, 1.0), **flat) == []
    (sentence,) = messages(tmp_path, measured=(9.0, 1.0, 3.0), **flat)
    assert "Axis 2 is resampled from 3 mm" in sentence


def test_other_images(tmp_path: Path) -> None:
    describe(tmp_path, channels=("T1", "T2"))
    sentences = messages(tmp_path, CT, normalization_schemes=["ZScoreNormalization"] * 2)
    assert sentences[0] == "The preset is for 1 channel, the scans have 2 (T1, T2)."
    assert sentences[1].startswith(
        "The preset is for CT; no channel of the scans (T1, T2) is normalised as CT"
    )
    sentences = messages(tmp_path, MR)
    assert [sentence.split(";")[0] for sentence in sentences] == [
        "The preset is for 4 channels, the scans have 1 (T1, T2).",
        "The preset is for MR",
    ]
    assert messages(tmp_path, MR, normalization_schemes=["ZScoreNormalization"] * 4) == []


@pytest.mark.parametrize(("source", "fit"), [("body_part", "body-part"), ("anatomical", "ape")])
def test_sources_that_are_not_fitted(tmp_path: Path, source: str, fit: str) -> None:
    folder = tmp_path / "Dataset007_Tiny"
    (folder / f"locctx_{source}").mkdir(parents=True)
    (sentence,) = messages(folder, location={"source": source})
    expected = f"The location source '{source}' is not fitted on this dataset yet: locctx fit {fit} -d 7"
    assert sentence == expected
    (folder / f"locctx_{source}" / "regressor.pt").touch()
    assert messages(folder, location={"source": source}) == []


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        (4, "4 training cases cannot be split into nnU-Net's 5 folds"),
        (5, "5 training cases: a paired test over them (Wilcoxon) cannot fall below p = 0.0625"),
    ],
)
def test_few_cases(tmp_path: Path, cases: int, words: str) -> None:
    describe(tmp_path, cases)
    (sentence,) = messages(tmp_path)
    assert words in sentence


def test_trainers_that_refuse_the_preset(tmp_path: Path) -> None:
    suitable = Suitability(["A"], {"multiples of 16 only": ["B", "C"], "other": ["D"]})
    preset = MadeFor(trainers=("A", "B", "C"))
    assert messages(tmp_path, preset, suitable=suitable) == ["B, C do not take it: multiples of 16 only."]
    assert messages(tmp_path, MadeFor(trainers=("A",)), suitable=suitable) == []

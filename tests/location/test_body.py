"""The body's box: the same in every scan of one patient, whatever lies around the body."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import BodyBox, Measurement, make_source
from nnunet_locctx.location.body import find_body
from nnunet_locctx.phantoms.whole_body import whole_body_case

MM = 8.0
TRUNK = np.array([170.0, 110.0])
"""Half width and depth in mm."""

TISSUE, AIR = 40.0, -1000.0
SHARED = Path("/work/shared/data")


def patient(
    *,
    arms: str = "",
    couch: float = 0.0,
    blanket: bool = False,
    margin: tuple[float, float, float] = (90, 60, 60),
    span: tuple[float, float] = (0, 900),
    mr: bool = False,
) -> tuple[np.ndarray, Frame]:
    """A trunk from 0 to 600 mm, neck, head up to 900, lungs, as (R, A, S) array, in HU or as dark MR.

    Args:
        arms: ``down`` beside the trunk or ``up`` above the head.
        couch: Thickness in mm of a plate below the patient, 3 mm behind the back.
        blanket: Lies on the patient.
        margin: mm of air around the body, along R, A and at both ends of S.
        span: mm along S that are scanned, within the margins.
    """
    low, high = span[0] - margin[2] * (span[0] <= 0), span[1] + margin[2] * (span[1] >= 900)
    ends = [TRUNK[0] + margin[0], TRUNK[1] + margin[1]]
    axes = [np.arange(-end + MM / 2, end, MM) for end in ends] + [np.arange(low + MM / 2, high, MM)]
    r, a, s = np.meshgrid(*axes, indexing="ij")

    def ellipse(centre: tuple[float, float], half: tuple[float, float]) -> np.ndarray:
        return ((r - centre[0]) / half[0]) ** 2 + ((a - centre[1]) / half[1]) ** 2 <= 1

    body = ellipse((0, 0), (TRUNK[0], TRUNK[1])) & (s >= 0) & (s <= 600)
    body |= ellipse((0, 0), (62, 62)) & (s > 590) & (s < 700)
    body |= (r / 76) ** 2 + (a / 95) ** 2 + ((s - 780) / 120) ** 2 <= 1
    if arms == "down":
        for side in (-1, 1):
            body |= ellipse((side * 218, 0), (45, 45)) & (s > 60) & (s < 560)
    if arms == "up":
        for side in (-1, 1):
            body |= ellipse((side * 120, 0), (42, 42)) & (s > 560)
    lungs = (ellipse((85, 5), (55, 70)) | ellipse((-85, 5), (55, 70))) & (s > 380) & (s < 560)
    image = np.full(r.shape, AIR, dtype=np.float32)
    if blanket:
        image[ellipse((0, 20), (TRUNK[0] + 40, TRUNK[1] + 40)) & (a > 0)] = -850
    image[body] = TISSUE
    image[body & lungs] = -800
    if couch:
        plate = (a < -TRUNK[1] - 3) & (a > -TRUNK[1] - 3 - couch) & (np.abs(r) < 220)
        image[plate] = 60
    image += np.random.default_rng(0).normal(0, 15, image.shape).astype(np.float32)
    if mr:
        image = np.abs(image - AIR) * np.float32(0.3)
    affine = np.diag([MM, MM, MM, 1])
    affine[:3, 3] = [axis[0] for axis in axes]
    return image, Frame.from_affine(image.shape, affine, "RAS")


def box_of(modality: str = "ct", **options: Any) -> BodyBox:
    box = find_body(*patient(mr=modality == "mr", **options), modality)
    assert not box.problem
    return box


def distance(one: BodyBox, other: BodyBox, axes: Sequence[int] = (0, 1, 2)) -> float:
    """Largest distance of the same edge of two boxes in mm."""
    edges = [np.stack([box.lower, box.upper])[:, list(axes)] for box in (one, other)]
    return float(np.abs(edges[0] - edges[1]).max())


@pytest.mark.parametrize(
    ("modality", "options", "allowed"),
    [
        ("ct", {}, 16),
        ("ct", {"arms": "down"}, 16),
        ("ct", {"arms": "up"}, 16),
        ("ct", {"couch": 8.0}, 16),
        ("ct", {"couch": 18.0, "blanket": True, "arms": "down"}, 16),
        ("ct", {"margin": (150, 150, 200)}, 18),  # coarser cells
        ("mr", {}, 24),  # half of Otsu's threshold lets the blurred edge pass
        ("mr", {"arms": "down", "margin": (30, 20, 12)}, 24),
    ],
)
def test_the_box_is_that_of_trunk_and_head_whatever_lies_around(
    modality: str, options: dict[str, Any], allowed: float
) -> None:
    """The top of the head is a tip, of which 27 mm are less than a fifth of the trunk's section."""
    truth = BodyBox(np.array([-170.0, -110.0, 0.0]), np.array([170.0, 110.0, 873.0]))
    assert distance(box_of(modality, **options), truth) <= allowed


@pytest.mark.parametrize("arms", ["", "up"])
@pytest.mark.parametrize("span", [(100, 500), (350, 900)])
def test_a_field_of_view_that_cuts_the_body_off_ends_the_box_along_the_body_alone(
    span: tuple[int, int], arms: str
) -> None:
    box, whole = box_of(span=span, arms=arms), box_of()
    assert box.lower[2] == pytest.approx(span[0], abs=MM)
    assert distance(box, whole, axes=(0, 1)) <= 12


def test_a_field_of_view_within_the_body_is_the_box() -> None:
    image, frame = patient(span=(100, 500), margin=(-20, -10, 0))
    box = find_body(image, frame, "ct")
    np.testing.assert_allclose(box.upper - box.lower, frame.extent, atol=1)


@pytest.mark.parametrize(("order", "signs"), [((2, 1, 0), (1, 1, 1)), ((1, 2, 0), (-1, 1, -1))])
def test_the_box_does_not_depend_on_how_the_scan_is_stored(
    order: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    image, frame = patient(couch=8.0)
    stored = image.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    steps, origin = frame.affine_lps[:3, order] * signs, frame.affine_lps[:3, 3].copy()
    for axis, (n, sign) in enumerate(zip(stored.shape, signs, strict=True)):
        origin -= steps[:, axis] * (n - 1) * (sign < 0)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps, origin
    box = find_body(stored, Frame.from_affine(stored.shape, affine, "LPS"), "ct")
    assert distance(box, find_body(image, frame, "ct")) <= 2 * MM  # cells begin at the other end


def skull_stripped(rim: float = 200.0) -> tuple[np.ndarray, Frame]:
    """A brain of 60 x 70 x 50 voxels in zeros; `rim`: how bright its outermost voxels are."""
    index = np.indices((100, 110, 90)) - np.array([40, 60, 45])[:, None, None, None]
    depth = (index**2 / np.array([30.0, 35.0, 25.0])[:, None, None, None] ** 2).sum(0)
    image = np.random.default_rng(0).normal(300, 40, depth.shape)
    image[depth > 0.8] = rim
    return np.where(depth <= 1, image, 0).astype(np.float32), Frame.from_affine(depth.shape, np.eye(4), "RAS")


def test_of_a_stripped_scan_everything_is_body() -> None:
    """Dark tissue at the rim too, which is below half of Otsu's threshold of what is not 0."""
    for modality in ("ct", "mr"):
        box = find_body(*skull_stripped(), modality)
        np.testing.assert_allclose(box.lower, [9.5, 24.5, 19.5], atol=1)
        np.testing.assert_allclose(box.upper, [70.5, 95.5, 70.5], atol=1)


@pytest.mark.parametrize("span", [(0, 900), (100, 500)])
def test_water_of_exactly_0_hu_is_body(span: tuple[int, int]) -> None:
    image, frame = patient(span=span)
    expected = find_body(image, frame, "ct")
    image[image > -300] = 0
    assert distance(find_body(image, frame, "ct"), expected) == 0


def test_zeros_around_air_do_not_make_a_stripped_scan() -> None:
    """A scanner sets what it cannot reach to 0: the air within is not body."""
    image, frame = patient(mr=True)
    image[:6], image[-4:] = 0, 0
    assert distance(find_body(image, frame, "mr"), box_of("mr")) <= MM


@pytest.mark.parametrize("modality", ["ct", "mr"])
@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.full((40, 40, 40), -1000.0), "every voxel has the value -1000"),
        (np.random.default_rng(0).normal(-1000, 10, (40, 40, 40)), "nothing but noise"),
        (np.abs(np.random.default_rng(0).normal(0, 10, (150, 150, 60))), "nothing but noise"),
        (np.where(np.arange(40) == 3, np.nan, np.ones((40, 40, 40))), "not finite"),
    ],
)
def test_a_scan_without_a_body_says_so(image: np.ndarray, words: str, modality: str) -> None:
    frame = Frame.from_affine(image.shape, np.diag([4.0, 4.0, 4.0, 1.0]), "RAS")
    box = find_body(image.astype(np.float32), frame, modality)
    assert words in box.problem
    assert box.problem.startswith("no body was found")
    assert Measurement.from_bytes(box.to_bytes()).problem == box.problem


def test_a_small_bright_thing_in_air_is_no_body() -> None:
    """The couch alone, or a calibration rod."""
    image, frame = patient()
    image[image > -500] = AIR
    image[10:12, 10:12, 20:120] = TISSUE
    assert "the largest bright part takes 0.12%" in find_body(image, frame, "ct").problem


def test_wrong_input_is_refused() -> None:
    image, frame = patient()
    with pytest.raises(ValueError, match="modality must be one of ct, mr, got 'pet'"):
        find_body(image, frame, "pet")
    with pytest.raises(ValueError, match="its frame"):
        find_body(image[1:], frame, "ct")
    with pytest.raises(ValueError, match="below its upper ones"):
        BodyBox(np.zeros(3), np.array([1.0, 0.0, 1.0]))


def test_the_coordinate_is_the_fraction_of_the_box_also_outside_and_after_storage() -> None:
    _, frame = patient()
    stored = BodyBox(np.array([-10.0, 0.0, 100.0]), np.array([10.0, 40.0, 500.0])).to_bytes()
    field = make_source("body").field(frame, Measurement.from_bytes(stored))
    places = np.array([[0.0, 20.0, 300.0], [10.0, 0.0, 500.0], [-30.0, 40.0, 700.0]])
    index = frame.index_from_millimetres(places * [-1, -1, 1])
    expected = [[0, 0, 0], [0.5, -0.5, 0.5], [-1.5, 0.5, 1.0]]
    np.testing.assert_allclose(field.at(index), expected, atol=1e-6)


def test_organs_of_the_whole_body_phantom_are_told_apart_better_than_in_the_scan() -> None:
    """Across the body, where the phantom's field of view differs by a margin of air, oblique scans included."""
    places: dict[str, list[Array]] = {"voxel": [], "body": []}
    for number in range(8):
        case = whole_body_case(number, in_plane=(7, 9), slices=(7, 9), seed=1)
        affine = np.eye(4)
        affine[:3, :3] = np.asarray(case.direction) * case.spacing
        affine[:3, 3] = case.origin
        frame = Frame.from_affine(case.labels.shape, affine, "LPS")
        box = find_body(case.images[0].astype(np.float32), frame, "ct")
        index = [np.argwhere(case.labels == value) for value in range(1, 11)]
        for name, field in places.items():
            located = make_source(name).field(frame, box)
            field.append(
                np.array([located.at(i).mean(0)[:2] if len(i) else np.full(2, np.nan) for i in index])
            )
    ratio = {
        name: np.nanmean(coordinates, axis=0).std(0) / np.nanmedian(np.nanstd(coordinates, axis=0), axis=0)
        for name, coordinates in places.items()
    }
    assert (ratio["body"] > 1.3 * ratio["voxel"]).all(), ratio


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared scans are not here")
@pytest.mark.parametrize(
    ("dataset", "case", "lower", "upper"),
    [
        # mm, read off the pictures: the abdomen fills the scan but for air in front and the couch behind; the brain
        # ends with its voxels; face and nose are left out of the head, the neck is not
        ("Dataset203_TotalSegCT", "ct_full", [-180, 25, 93], [186, 298, 429]),
        ("Dataset208_MouseBrainMR", "mouse_02", [3.2, 0.1, 3.2], [13.7, 19.0, 10.1]),
        ("Dataset209_HeadMR", "head_02", [-80, -112, -128], [79, 86, 82]),
    ],
)
def test_boxes_of_real_scans_are_where_the_pictures_show_the_body(
    dataset: str, case: str, lower: list[float], upper: list[float]
) -> None:
    image = SimpleITK.ReadImage(str(SHARED / dataset / "imagesTr" / f"{case}_0000.nii.gz"))
    array = SimpleITK.GetArrayFromImage(image).astype(np.float32)
    frame = Frame.from_sitk(image)
    box = find_body(array, frame, "ct" if "CT" in dataset else "mr")
    tolerance = 0.03 * frame.extent
    assert (np.abs(box.lower - lower) <= tolerance).all(), box
    assert (np.abs(box.upper - upper) <= tolerance).all(), box

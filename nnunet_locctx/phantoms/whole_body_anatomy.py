"""The whole-body phantom's gross anatomy, from the upper thighs to the head, arms raised out of view, and its organs.

Coarse enough to be drawn in about a second, detailed enough that a slice's level and a voxel's side show in some
100-150 mm of surroundings: the outline, legs, pelvis, spine, ribs, lungs, heart, liver, stomach, bowel, skull. All
numbers are mm in the atlas (right, anterior, superior) or HU, rough averages of an adult. The organs are those that
only their place distinguishes; structures of the same look are painted with them.
"""

from typing import NamedTuple

import numpy as np

from nnunet_locctx.phantoms.storage import FloatArray
from nnunet_locctx.phantoms.whole_body_patient import Canvas, Mask, Patient

AIR, LUNG, FAT, MUSCLE, BONE = -1000.0, -820.0, -100.0, 50.0, 350.0

_TEXTURE = 12.0  # HU

# Height, half width, half depth and middle of the trunk's and neck's outline.
_TRUNK = np.array(
    [
        (112, 60, 70, 0),
        (122, 150, 96, 0),
        (150, 172, 105, 0),
        (200, 178, 110, 0),
        (260, 165, 105, 0),
        (330, 150, 100, 3),
        (400, 152, 105, 3),
        (500, 163, 115, 3),
        (580, 168, 112, 0),
        (640, 180, 98, -5),
        (668, 172, 86, -8),
        (690, 110, 72, -8),
        (710, 66, 62, -8),
        (745, 58, 60, -3),
        (775, 60, 68, 5),
    ],
    dtype=np.float64,
).T
_HEAD = ((0, 8, 812), (74, 94, 82))
_FACE = ((0, 40, 775), (50, 55, 42))
# Middle of the vertebrae along A, and their half width; discs between them.
_SPINE = np.array(
    [
        (175, -78, 14),
        (215, -80, 40),
        (255, -58, 44),
        (270, -48, 24),
        (340, -42, 24),
        (440, -52, 20),
        (540, -66, 17),
        (640, -56, 15),
        (700, -22, 11),
        (785, -12, 10),
    ],
    dtype=np.float64,
).T
_VERTEBRA_TOPS = np.concatenate(
    [np.linspace(262, 262 + 5 * 36, 6), np.linspace(442, 442 + 12 * 21, 13)[1:], np.linspace(694, 785, 8)[1:]]
)


class _Part(NamedTuple):
    """A structure that is one ellipsoid: centre, half axes, HU, and its share of the contrast agent."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    value: float
    share: float = 0.0


_CHEST_AND_ABDOMEN = (
    _Part((72, 10, 448), (74, 78, 66), 60, 0.5),  # liver
    _Part((5, 45, 462), (66, 36, 30), 60, 0.5),  # its left lobe
    _Part((-68, 28, 440), (40, 42, 50), 25),  # stomach
    _Part((-70, 52, 445), (28, 18, 34), AIR),  # its bubble
    _Part((-104, -34, 452), (25, 40, 44), 55, 0.6),  # spleen
    _Part((-64, -20, 388), (25, 24, 52), 35, 1.0),  # kidneys, the left one higher
    _Part((64, -20, 372), (25, 24, 52), 35, 1.0),
    _Part((-24, 34, 530), (56, 46, 58), 45, 0.9),  # heart
    _Part((0, 38, 188), (42, 34, 34), 5),  # bladder
)
_HEAD_PARTS = (
    _Part((0, 66, 802), (20, 20, 16), -700),  # sinuses
    _Part((0, 48, 782), (13, 26, 10), -900),  # nose
)


def paint(canvas: Canvas, patient: Patient) -> None:
    """Paints a patient's anatomy, without its organs.

    Args:
        canvas: Its places are the patient's, in the atlas; covered with air where there is no body.
        patient: The patient.
    """
    random = patient.jitter()
    fat, muscle, bone, lung = np.array((FAT, MUSCLE, BONE, LUNG)) + patient.tissue
    canvas.values[:] = AIR
    for value, thickness in ((fat, 0.0), (muscle, patient.fat)):
        _legs(canvas, thickness, value)
        _outline(canvas, thickness, value)
    _thigh_bones(canvas)
    skin = canvas.values > AIR
    _belly(canvas, patient, fat)
    _ribs(canvas, muscle, bone)
    for side in (-1, 1):  # the right dome of the diaphragm is the higher one, so the lung's base is too
        base = random.normal(0, 4)
        _draw(canvas, _Part((side * 76, -6, 556 + 4 * side + base), (54, 78, 112), lung), patient, random)
    for part in _CHEST_AND_ABDOMEN:
        _draw(canvas, part, patient, random)
    _pelvis(canvas, bone)
    _spine(canvas, fat, muscle, bone, random.normal(0, 3))
    vessel = 45 + patient.contrast
    canvas.tube((270, 300, 560, 640), ((-6, -14), (-8, -16), (-22, -40), (-14, -26)), ((9, 9),) * 4, vessel)
    canvas.tube((270, 300, 470), ((12, -14), (16, -16), (24, -20)), ((10, 8),) * 3, vessel - 20)
    canvas.tube((600, 640, 700, 790), ((4, -16), (0, -10), (0, 12), (0, 18)), ((9, 9),) * 4, AIR)  # airway
    _head(canvas, patient, random, muscle, bone)
    canvas.values[skin] += _TEXTURE * patient.texture_at(0, canvas.places[skin])


def _draw(canvas: Canvas, part: _Part, patient: Patient, random: np.random.Generator) -> None:
    """A structure with the patient's own place, size and contrast."""
    centre = np.asarray(part.centre) + random.normal(0.0, 4.0, 3)
    radii = np.asarray(part.radii) * random.uniform(0.92, 1.08, 3)
    value = part.value + part.share * patient.contrast + random.normal(0.0, 5.0)
    canvas.ellipsoid(centre.tolist(), radii.tolist(), value)


def _outline(canvas: Canvas, thickness: float, value: float) -> None:
    """Trunk, neck and head under so much fat; the head has none."""
    part = canvas.between(_TRUNK[0, 0], _TRUNK[0, -1])
    up = canvas.up[part]
    width, depth, middle = (np.interp(up, _TRUNK[0], row) for row in _TRUNK[1:])
    radius = _rounded(canvas.right[part] / width, (canvas.front[part] - middle) / depth)
    layer = thickness * np.interp(up, (105, 250, 420, 600, 700), (1.3, 1.3, 1.0, 0.7, 0.4))
    canvas.values[part][radius <= 1 - layer / np.minimum(width, depth)] = value
    for centre, radii in (_HEAD, _FACE):
        canvas.ellipsoid(centre, radii, value)


def _rounded(right: FloatArray, front: FloatArray) -> FloatArray:
    """Distance from the middle of a cross-section between an ellipse and a rectangle, 1 on its edge."""
    return np.asarray((np.abs(right) ** 2.5 + np.abs(front) ** 2.5) ** 0.4)


def _legs(canvas: Canvas, thickness: float, value: float) -> None:
    """Both thighs under so much fat; they go on below the atlas."""
    outer = np.array([(62, 70), (76, 82), (83, 90), (80, 88)], dtype=np.float64) - 1.2 * thickness
    for side in (-1, 1):
        centres = [(side * 80, -4), (side * 85, -4), (side * 88, -2), (side * 88, 0)]
        canvas.tube((-300, 0, 110, 150), centres, outer.tolist(), value)


def _thigh_bones(canvas: Canvas) -> None:
    for side in (-1, 1):
        shaft = [(side * 74, 6), (side * 82, 6), (side * 112, 0), (side * 112, 0)]
        canvas.tube((-300, 0, 125, 165), shaft, ((14, 14), (15, 15), (20, 18), (18, 16)), 700)
        canvas.tube((-300, 0, 60), shaft[:3], ((7, 7),) * 3, -40)  # marrow


def _belly(canvas: Canvas, patient: Patient, fat: float) -> None:
    """Fat between the organs of the abdomen, loops of bowel with some gas; the colon, with air on the left."""
    part = canvas.between(175, 470)
    depth = canvas.depth(part, (0, 22, 323), (118, 68, 148))
    wave = patient.texture_at(1, canvas.places[part])
    inside = depth <= 1
    canvas.values[part][inside] = np.where(wave > 0.2, 30.0, fat)[inside]
    canvas.values[part][inside & (wave > 1.7)] = -700.0
    heights = (225.0, 300.0, 400.0)
    canvas.tube(heights, ((92, 12), (104, 6), (98, 8)), ((24, 24), (20, 20), (18, 18)), 20)
    canvas.tube(heights, ((-84, -4), (-108, -12), (-108, -10)), ((13, 13),) * 3, 30)
    canvas.tube(heights, ((-84, -4), (-108, -12), (-108, -10)), ((8, 8),) * 3, -850)


def _ribs(canvas: Canvas, muscle: float, bone: float) -> None:
    """The chest's wall: ribs that descend to the front, the cavity, the breastbone."""
    part = canvas.between(425, 668)
    up, front = canvas.up[part], canvas.front[part]
    width, depth, middle = (np.interp(up, _TRUNK[0], row) for row in _TRUNK[1:])
    narrow = np.interp(up, (600, 668), (0.84, 0.55))  # the cage closes below the shoulders
    radius = _rounded(canvas.right[part] / (narrow * width), (front - middle) / (0.84 * depth))
    phase = ((up + 0.4 * front) / 21.0) % 1.0
    back_or_side = (front < 60) | (up > 520)  # the lowest ribs do not reach the front
    canvas.values[part][(np.abs(radius - 0.96) < 0.04) & (phase < 0.45) & back_or_side] = bone
    canvas.values[part][(radius < 0.92) & (np.abs(canvas.right[part]) < 26)] = muscle - 40
    canvas.tube((505, 640), ((0, 88), (0, 78)), ((18, 6), (20, 6)), bone - 150)
    for side in (-1, 1):  # shoulder blades and collar bones
        canvas.ellipsoid((side * 118, -62, 610), (38, 7, 48), bone)
        canvas.ellipsoid((side * 85, 38, 662), (70, 8, 8), bone + 100)
        canvas.ellipsoid((side * 150, -10, 645), (22, 24, 24), bone + 50)


def _pelvis(canvas: Canvas, bone: float) -> None:
    for side in (-1, 1):
        part = canvas.between(165, 325)
        depth = canvas.depth(part, (side * 42, 14, 290), (100, 104, 130))
        wing: Mask = (np.abs(depth - 0.95) < 0.055) & (side * canvas.right[part] > 48)
        wing &= (canvas.front[part] < 52) & (canvas.front[part] > -92)
        canvas.values[part][wing] = bone
        # socket and head of the femur
        canvas.ellipsoid((side * 90, 4, 180), (32, 34, 34), bone + 100, hollow=0.82)
        canvas.ellipsoid((side * 90, 4, 178), (23, 23, 23), bone)
        canvas.ellipsoid((side * 32, 62, 158), (38, 14, 15), bone)  # pubis
        canvas.ellipsoid((side * 56, -38, 138), (16, 24, 26), bone)  # ischium


def _spine(canvas: Canvas, fat: float, muscle: float, bone: float, shift: float) -> None:
    """Sacrum, vertebrae with discs between, the canal with its cord, spinous processes."""
    heights, middle, half = _SPINE
    centres = np.stack([np.zeros(len(middle)), middle], axis=-1)
    part, inside = canvas.tube(
        heights.tolist(), centres.tolist(), np.stack([half, 0.75 * half], axis=-1).tolist(), bone - 120
    )
    up = canvas.up[part] - shift
    above = np.clip(np.searchsorted(_VERTEBRA_TOPS, up), 1, len(_VERTEBRA_TOPS) - 1)
    bottom, top = _VERTEBRA_TOPS[above - 1], _VERTEBRA_TOPS[above]
    place = (up - bottom) / (top - bottom)
    moving = up > _VERTEBRA_TOPS[0]
    canvas.values[part][inside & moving & (place > 0.78)] = 85.0
    part = canvas.between(235, 800)
    up = canvas.up[part]
    behind = canvas.front[part] - np.interp(up, heights, middle - 0.75 * half)
    canal = (canvas.right[part] / 11) ** 2 + ((behind + 9) / 9) ** 2 <= 1
    canvas.values[part][canal] = muscle - 15
    up = up - shift
    above = np.clip(np.searchsorted(_VERTEBRA_TOPS, up), 1, len(_VERTEBRA_TOPS) - 1)
    place = (up - _VERTEBRA_TOPS[above - 1]) / (_VERTEBRA_TOPS[above] - _VERTEBRA_TOPS[above - 1])
    process = (np.abs(canvas.right[part]) < 5) & (behind < -18) & (behind > -36) & (place < 0.55)
    arch = (np.abs(canvas.right[part]) < 30) & (np.abs(behind + 14) < 5) & (place < 0.35) & ~canal
    under_fat = canvas.values[part] > (fat + muscle) / 2
    canvas.values[part][(process | arch) & under_fat] = bone


def _head(canvas: Canvas, patient: Patient, random: np.random.Generator, muscle: float, bone: float) -> None:
    centre, radii = np.array(_HEAD, dtype=np.float64)
    brain = centre + np.array([0, 0, 4])
    canvas.ellipsoid(brain.tolist(), (0.92 * radii).tolist(), bone + 450, hollow=0.9)
    canvas.ellipsoid(brain.tolist(), (0.83 * radii).tolist(), muscle - 15)
    canvas.ellipsoid((0, 40, 762), (44, 46, 16), bone + 250, hollow=0.8)  # jaw
    canvas.ellipsoid((0, 48, 778), (26, 30, 6), bone + 200)  # teeth, hard palate
    for part in _HEAD_PARTS:
        _draw(canvas, part, patient, random)


Place = tuple[float, float, float]

_LEVELS: dict[str, Place] = {
    "thigh": (88, -38, 50),
    "hip": (84, -62, 195),
    "loin": (60, -56, 335),
    "chest": (64, -66, 500),
    "shoulder": (78, -46, 650),
}

ORGANS: dict[str, Place] = {
    f"{level}_{side}": (sign * place[0], place[1], place[2])
    for level, place in _LEVELS.items()
    for side, sign in (("right", 1), ("left", -1))
}
"""Class name -> atlas place in mm along (R, A, S), before jitter; the label of a class is its place in this table,
counted from 1."""

LOOK_ALIKES: tuple[Place, ...] = tuple(
    (sign * right, front, up)
    for right, front, up in (
        (92, -34, 122),
        (78, -60, 265),
        (62, -60, 415),
        (66, -64, 578),
        (88, 40, 60),
        (76, 58, 350),
        (86, 62, 590),
    )
    for sign in (1, -1)
)
"""Atlas places of structures that look like organs and belong to the background."""

JITTER = 8.0
"""Largest displacement of an organ in atlas mm along each axis."""

RADIUS = (14.0, 18.0)
"""Range of an organ's radius in atlas mm; each half axis differs from it by up to 7 %."""

_BED = 1.5  # radii of muscle around each, so that its surroundings do not give its level away
_PRESENT = 0.85  # of the look-alikes
_ORGAN_TEXTURE = 20.0  # HU


def paint_organs(canvas: Canvas, patient: Patient) -> None:
    """Paints a patient's organs, with labels, and look-alikes; all draw from the same distributions."""
    random = np.random.default_rng([*patient.seed, 4])
    places = [(label, place) for label, place in enumerate(ORGANS.values(), start=1)]
    places += [(0, place) for place in LOOK_ALIKES]
    muscle = MUSCLE + patient.tissue[1]
    for label, place in places:
        present = random.random() < _PRESENT or label > 0
        centre = np.asarray(place) + random.uniform(-JITTER, JITTER, 3)
        radii = random.uniform(*RADIUS) * random.uniform(0.93, 1.07, 3)
        value = patient.organ + random.uniform(-10.0, 10.0)
        if not present:
            continue
        for size, intensity, painted in ((_BED, muscle, None), (1.0, value, label)):
            canvas.ellipsoid(centre.tolist(), (size * radii).tolist(), intensity, label=painted)
        part = canvas.between(centre[2] - radii[2], centre[2] + radii[2])
        inside = canvas.depth(part, centre.tolist(), radii.tolist()) <= 1.0
        canvas.values[part][inside] += _ORGAN_TEXTURE * patient.texture_at(2, canvas.places[part][inside])

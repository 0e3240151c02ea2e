"""The organs of the whole-body phantom that only their place tells apart, and structures of the same look."""

from __future__ import annotations

import numpy as np

from nnunet_locctx.phantoms.whole_body_anatomy import MUSCLE
from nnunet_locctx.phantoms.whole_body_canvas import Canvas
from nnunet_locctx.phantoms.whole_body_patient import Patient

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
_TEXTURE = 20.0  # HU


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
        canvas.values[part][inside] += _TEXTURE * patient.texture_at(2, canvas.places[part][inside])

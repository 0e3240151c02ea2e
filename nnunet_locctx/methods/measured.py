"""What the trainers were measured to cost and to bring; scripts/experiments/balls/collect.py writes the file."""

import json
from dataclasses import dataclass, field
from pathlib import Path

MEASURED_FILE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True)
class Figures:
    """Figures of one trainer; None: not measured. Ratios are to the planned U-Net.

    Attributes:
        parameters: Number of the network's parameters.
        parameters_ratio: The same, relative.
        multiply_adds: Multiply-adds of one forward pass.
        multiply_adds_ratio: The same, relative.
        step_ratio: Time of forward and backward pass.
        memory_ratio: Peak memory of forward and backward pass.
        dice: Mean Dice on the placement phantom.
        dice_plain: Dice of the U-Net without location, same seeds and budget.
        seeds: Number of training runs behind the Dice.
        heads: Mean Dice on human heads that training has not seen.
        mice: The same on mouse brains.
    """

    parameters: int | None = None
    parameters_ratio: float | None = None
    multiply_adds: int | None = None
    multiply_adds_ratio: float | None = None
    step_ratio: float | None = None
    memory_ratio: float | None = None
    dice: float | None = None
    dice_plain: float | None = None
    seeds: int | None = None
    heads: float | None = None
    mice: float | None = None


@dataclass(frozen=True)
class Measured:
    """Content of the file.

    Attributes:
        figures: By trainer.
        notes: How they were measured, one sentence each.
    """

    figures: dict[str, Figures] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of(self, name: str) -> Figures:
        """Figures of a trainer, all None if there are none."""
        return self.figures.get(name, Figures())


def read_measured(file: Path = MEASURED_FILE) -> Measured:
    """The figures that travel with the package; without the file, none."""
    if not file.is_file():
        return Measured()
    content = json.loads(file.read_text(encoding="utf-8"))
    return Measured(
        {name: Figures(**figures) for name, figures in content["figures"].items()}, list(content["notes"])
    )

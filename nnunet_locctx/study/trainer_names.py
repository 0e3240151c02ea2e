"""The trainer of a method and its length: nnU-Net knows an epoch count by a suffix of the trainer's name."""

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nnunet_locctx.study.reading import check_known

NNUNET_EPOCHS = 1000
"""Epochs of nnU-Net's trainer without a suffix."""

ITERATIONS_PER_EPOCH = 250
"""Training steps of an epoch of nnU-Net, fixed in its trainer."""

_LENGTH = re.compile(r"_(\d+)epochs?(?=_|$)")


@dataclass(frozen=True)
class TrainerName:
    """A trainer, resolved.

    Attributes:
        name: As ``nnUNetv2_train -tr`` takes it, with the epochs' suffix.
        located: Whether it uses a location.
        epochs: Length of the training.
        recipe: Optimiser and schedule that differ from nnU-Net's, in words; empty if they do not.
        variants: Parts of the name that change the augmentation.
    """

    name: str
    located: bool
    epochs: int
    recipe: str = ""
    variants: tuple[str, ...] = ()


def resolve_trainer(name: str, epochs: int, where: str) -> TrainerName:
    """The trainer of that name that trains for so many epochs.

    Args:
        name: Without the epochs' suffix: one of this package, of nnU-Net, or of a folder of ``nnUNet_extTrainer``.
        epochs: Of 250 iterations.
        where: Who asks, for the errors.

    Raises:
        ValueError: No such trainer, or it has no variant of that length; names those there are.
    """
    from nnunet_locctx.nnunet.training.trainers import TRAINERS, find_trainer

    if _LENGTH.search(name):
        raise ValueError(
            f"{where}: the trainer {name!r} is given without its epochs' suffix; the study's `epochs` sets it"
        )
    own = find_trainer(name)
    if own is not None:
        recipe = getattr(own, "recipe", None)
        usual = NNUNET_EPOCHS if recipe is None else recipe.epochs
        described = (
            "" if recipe is None else f"{recipe.optimizer}, rate {recipe.learning_rate:g}, {recipe.schedule}"
        )
        full = name if epochs == usual else name + _suffix(epochs)
        return TrainerName(full, _is_located(own), epochs, described, tuple(name.split("_")[1:]))
    stock, foreign = _stock_trainers(), _foreign_trainers()
    check_known([name], [*TRAINERS, *stock, *foreign], "trainer", where)
    if epochs == NNUNET_EPOCHS:
        return TrainerName(name, False, epochs, variants=_variants(name))
    known = {**stock, **foreign}
    base = name.removesuffix("NoMirroring")  # nnU-Net has nnUNetTrainer_250epochs_NoMirroring
    wanted = (name + _suffix(epochs), f"{base}{_suffix(epochs)}_NoMirroring" if base != name else "")
    for candidate in wanted:
        if candidate in known:
            return TrainerName(candidate, False, epochs, variants=_variants(name))
    pattern = re.compile(rf"{re.escape(name)}_(\d+)epochs?$|{re.escape(base)}_(\d+)epochs?_NoMirroring$")
    lengths = sorted(
        {int(match[1] or match[2]) for other in known if (match := pattern.match(other))} | {NNUNET_EPOCHS}
    )
    raise ValueError(
        f"{where}: there is no trainer {wanted[0]}; {name} exists with {', '.join(map(str, lengths))} epochs. Set "
        "`epochs` to one of these, or put a trainer of that name into a folder of nnUNet_extTrainer."
    )


def _suffix(epochs: int) -> str:
    return f"_{epochs}epoch{'s' if epochs > 1 else ''}"


def _is_located(trainer: type) -> bool:
    from nnunet_locctx.nnunet.training.trainer import LocatedTrainer

    return issubclass(trainer, LocatedTrainer)


def _variants(name: str) -> tuple[str, ...]:
    return (name.removeprefix("nnUNetTrainer").lstrip("_"),) if name != "nnUNetTrainer" else ()


@cache
def _stock_trainers() -> dict[str, Path]:
    """nnU-Net's trainers; its files are read, not imported, which would take seconds."""
    import nnunetv2

    return _classes(Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer")


def _foreign_trainers() -> dict[str, Path]:
    """Trainers of the folders that the caller's ``nnUNet_extTrainer`` names, but for ours."""
    from nnunet_locctx.resources import trainers_folder

    found: dict[str, Path] = {}
    for text in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep):
        folder = Path(text)
        if text.strip() and folder.is_dir() and folder.resolve() != trainers_folder().resolve():
            found.update(_classes(folder))
    return found


def _classes(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        for name in re.findall(r"^class (\w+)\(", text, re.MULTILINE):
            found[name] = file
        for line in re.findall(r"^from \S+ import \(?([^)]*?)\)?$", text, re.MULTILINE):
            if file.parent == folder and file.name != "__init__.py":  # a folder of re-exports
                found.update(dict.fromkeys(re.findall(r"\w+Trainer\w*", line), file))
    return found

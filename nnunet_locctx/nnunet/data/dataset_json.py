"""The description of a raw dataset, dataset.json, and what is wrong with one."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

KEYS = ("channel_names", "labels", "regions_class_order", "numTraining", "file_ending")
"""Keys that nnU-Net needs; ``regions_class_order`` only where a class has several label values."""

READER = "overwrite_image_reader_writer"


def places_of_dataset_json(folders: Iterable[Path]) -> list[Path]:
    """Files that may describe the contents of the folders, the nearest first: nnU-Net writes dataset.json into a folder
    of predictions, one level above scans and their labels, and two above the predictions of a fold's validation."""
    return [near / "dataset.json" for folder in folders for near in (folder, *folder.resolve().parents[:2])]


def read_dataset_json(
    folder: Path, needed: Collection[str] = ("channel_names", "labels", "file_ending")
) -> dict[str, Any]:
    """A dataset's description.

    Args:
        folder: The folder in which it lies, or the file itself.
        needed: Keys that are used, of :data:`KEYS`; the others may be missing or wrong.

    Raises:
        ValueError: It is not there, or no JSON, or something in it is missing or not in nnU-Net's form; names the file
            and the right form.
    """
    file = folder if folder.is_file() else folder / "dataset.json"
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return checked_content(content, str(file), needed)


def checked_content(content: Any, name: str, needed: Collection[str]) -> dict[str, Any]:
    """The content of a dataset.json, if nothing in it is wrong; raises ValueError that begins with its name."""
    problems = dataset_json_problems(content, needed)
    if problems:
        raise ValueError(f"{name}: " + "; ".join(problems))
    return dict(content)


def dataset_json_problems(content: Any, needed: Collection[str] = KEYS) -> list[str]:
    """The parts of a dataset.json that nnU-Net cannot use, each as a sentence that shows the right form.

    Args:
        content: Content of the file, as ``json.load`` gives it.
        needed: Keys that are looked at, of :data:`KEYS`. ``dataset``, which lists the cases, is always.
    """
    if not isinstance(content, dict):
        return [f'it must hold an object such as {{"labels": ...}}, got {_short(content)}']
    problems: list[str] = []
    missing = [key for key in KEYS if key in needed and key not in content and key != "regions_class_order"]
    if "channel_names" in missing and "modality" in content:
        missing.remove("channel_names")
        problems.append('"modality" is what nnU-Net 1 called "channel_names": rename it')
    if missing:
        problems.append(f"it lacks {', '.join(missing)}; it has {', '.join(content) or 'nothing'}")
    for key, check in _CHECKS.items():
        if key in needed and key in content:
            problems += check(content[key])
    if "regions_class_order" in needed:
        problems += _order(content)
    if "dataset" in content:
        problems += _cases(content["dataset"])
    reader = content.get(READER, "None")
    if not isinstance(reader, str):
        right = 'the name of a reader, such as "SimpleITKIO", or left out'
        problems.append(f'"{READER}" must be {right}, got {_short(reader)}')
    return problems


def _channels(value: Any) -> Iterator[str]:
    right = '{"0": "CT", "1": "PET"}'
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        right = json.dumps({str(number): name for number, name in enumerate(value)})
    elif isinstance(value, dict) and value:
        if all(_whole(number) for number in value.values()):
            right = json.dumps({str(number): name for name, number in value.items()})
        elif all(isinstance(name, str) for name in value.values()):
            if list(value) == [str(number) for number in range(len(value))]:
                return
            right = json.dumps({str(number): name for number, name in enumerate(value.values())})
    yield f'"channel_names" must give each channel\'s number its name, {right}, got {_short(value)}'


def _labels(value: Any) -> Iterator[str]:
    names = value.values() if isinstance(value, dict) else ()
    if names and all(isinstance(name, str) for name in names) and all(map(_digits, value)):
        right = json.dumps({name: int(number) for number, name in value.items()})
        yield f'"labels" must give each name its number, {right}, got {_short(value)} (nnU-Net 1\'s form)'
        return
    if not isinstance(value, dict) or not value:
        right = '{"background": 0, "liver": 1}'
        if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
            right = json.dumps({name: number for number, name in enumerate(value)})
        yield f'"labels" must give each name its number, {right}, got {_short(value)}'
        return
    for name, number in value.items():
        if isinstance(number, list) and name not in ("background", "ignore"):
            flat = list(_flat(number))
            if not flat or not all(_whole(n) for n in flat) or flat != number:
                numbers = [int(n) for n in flat if _whole(n) or _digits(n)]
                values = numbers if numbers and len(numbers) == len(flat) else [1, 2]
                yield f"label {name!r} must be one number or a list of numbers, {values}, got {_short(number)}"
        elif not _whole(number):
            right = number if _digits(number) else "0" if name == "background" else "1"
            yield f"label {name!r} must be a whole number, {right}, got {_short(number)}"
    if "background" in value and _whole(value["background"]) and value["background"] != 0:
        yield f"label 'background' must be 0, got {value['background']}"


def _order(content: Mapping[str, Any]) -> Iterator[str]:
    labels, order = content.get("labels"), content.get("regions_class_order")
    if not isinstance(labels, dict):
        return
    classes = [name for name in labels if name not in ("background", "ignore")]
    regions = [name for name in classes if isinstance(labels[name], list) and len(labels[name]) > 1]
    if not regions:
        return
    right = f"a list of {len(classes)} whole numbers, one for each of {', '.join(classes)}"
    if order is None:
        yield f'it lacks "regions_class_order", which classes of several labels ({", ".join(regions)}) need: {right}'
    elif not isinstance(order, list) or len(order) != len(classes) or not all(map(_whole, order)):
        yield f'"regions_class_order" must be {right}, got {_short(order)}'


def _count(value: Any) -> Iterator[str]:
    if not _whole(value):
        right = int(value) if _digits(value) else "the number of training cases"
        yield f'"numTraining" must be a whole number, {right}, got {_short(value)}'


def _ending(value: Any) -> Iterator[str]:
    if not (isinstance(value, str) and value.startswith(".") and len(value) > 1):
        right = f".{value}" if isinstance(value, str) and value.strip(".") else ".nii.gz"
        yield f'"file_ending" must be text that begins with a dot, "{right}", got {_short(value)}'


def _cases(value: Any) -> Iterator[str]:
    form = '{"images": ["imagesTr/CASE_0000.nii.gz"], "label": "labelsTr/CASE.nii.gz"}'
    if not isinstance(value, dict):
        old = ' (nnU-Net 1 listed the cases under "training")' if isinstance(value, list) else ""
        yield f'"dataset" must give each case its files, {{"CASE": {form}}}, got {_short(value)}{old}'
        return
    wrong = [name for name, entry in value.items() if not _is_case(entry)]
    if wrong:
        more = f" (and {len(wrong) - 1} more cases)" if len(wrong) > 1 else ""
        yield f'case {wrong[0]!r} of "dataset" must be {form}, got {_short(value[wrong[0]])}{more}'


def _is_case(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("label"), str):
        return False
    images = entry.get("images")
    return isinstance(images, list) and bool(images) and all(isinstance(file, str) for file in images)


_CHECKS = {"channel_names": _channels, "labels": _labels, "numTraining": _count, "file_ending": _ending}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _digits(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdigit()


def _flat(value: Any) -> Iterator[Any]:
    for entry in value:
        if isinstance(entry, list):
            yield from _flat(entry)
        else:
            yield entry


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."

"""nnU-Net's folders, found the way nnU-Net finds them, with errors that say what to set.

Nothing of nnU-Net is imported here, so that commands can check their input before the slow imports.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from nnunet_locctx.names import instead

PURPOSE = {
    "nnUNet_raw": "raw datasets (DatasetXXX_Name folders with imagesTr and labelsTr)",
    "nnUNet_preprocessed": "plans and preprocessed data",
    "nnUNet_results": "trained models",
}


def nnunet_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's environment variables names.

    Args:
        variable: ``nnUNet_raw``, ``nnUNet_preprocessed`` or ``nnUNet_results``.

    Raises:
        ValueError: The variable is not set or names no folder; says how to set it.
    """
    if variable not in PURPOSE:
        raise ValueError(f"variable must be one of {', '.join(PURPOSE)}, got {variable!r}")
    value = os.environ.get(variable)
    hint = f"It names the folder of nnU-Net's {PURPOSE[variable]}; set it with: export {variable}=/path/to/{variable}"
    if not value:
        raise ValueError(f"the environment variable {variable} is not set. {hint}")
    folder = Path(value)
    if not folder.is_dir():
        raise ValueError(f"the environment variable {variable} is {value!r}, which is not a folder. {hint}")
    return folder


def dataset_folder(variable: str, dataset: str | int) -> Path:
    """The folder of a dataset below one of nnU-Net's folders.

    Args:
        variable: See :func:`nnunet_folder`.
        dataset: Id (``3``, ``"003"``) or full name (``"Dataset003_Liver"``).

    Raises:
        ValueError: The variable is not usable, the name is neither id nor full name, or the dataset is not there
            (or there twice); lists those that are.
    """
    return dataset_in(nnunet_folder(variable), dataset, variable)


def dataset_in(folder: Path, dataset: str | int, called: str) -> Path:
    """The folder of a dataset below a folder of datasets.

    Args:
        folder: Holds DatasetXXX_Name folders.
        dataset: Id or full name.
        called: What to call the folder in errors.

    Raises:
        ValueError: See :func:`dataset_folder`.
    """
    known = sorted(_datasets(folder))
    instead_of_it = instead(dataset, [path.name for path in known])
    text = str(dataset)
    if re.fullmatch(r"\d{1,3}", text):
        matches = [path for path in known if path.name.startswith(f"Dataset{int(text):03d}_")]
    elif re.fullmatch(r"Dataset\d{3}_.+", text):
        matches = [path for path in known if path.name == text]
    else:
        raise ValueError(
            f"a dataset is given by its id (such as 3) or its full name (Dataset003_Liver), got {text!r}{instead_of_it}"
        )
    if not matches:
        raise ValueError(f"no dataset {text} in {folder} ({called}){instead_of_it}")
    if len(matches) > 1:
        names = ", ".join(path.name for path in matches)
        raise ValueError(
            f"{len(matches)} datasets have the id {text} in {folder} ({called}): {names}. Give the full name."
        )
    return matches[0]


def training_labels(raw: Path, preprocessed: Path | None = None) -> Path:
    """The folder that holds a dataset's training labels as CASE.ENDING.

    Args:
        raw: The dataset's raw folder.
        preprocessed: Its folder of preprocessed data; None: that of ``nnUNet_preprocessed``.

    Returns:
        ``labelsTr``; or, if ``dataset.json`` lists the cases' files (its key ``dataset``), which may lie anywhere, the
        copies that nnU-Net makes when it preprocesses.

    Raises:
        ValueError: ``dataset.json`` cannot be read, or ``nnUNet_preprocessed`` is needed and not set.
    """
    file = raw / "dataset.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        content = {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict) or "dataset" not in content:
        return raw / "labelsTr"
    return (preprocessed or nnunet_folder("nnUNet_preprocessed") / raw.name) / "gt_segmentations"


def _datasets(folder: Path) -> Iterator[Path]:
    return (
        path for path in folder.iterdir() if re.fullmatch(r"Dataset\d{3}_.+", path.name) and path.is_dir()
    )

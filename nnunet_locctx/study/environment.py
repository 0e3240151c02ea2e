"""The environment variables of a study's jobs."""

import os

from nnunet_locctx.study.definition import Study


def environment(study: Study) -> dict[str, str]:
    """The variables that nnU-Net's commands need for this study, whatever the shell says."""
    from nnunet_locctx.resources import trainers_folder

    trainers = [str(trainers_folder())]
    trainers += [
        path
        for path in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)
        if path and path not in trainers
    ]
    threads = "1" if study.device == "cuda" else str(study.processes)
    return {
        "nnUNet_raw": str(study.folders.raw),
        "nnUNet_preprocessed": str(study.folders.preprocessed),
        "nnUNet_results": str(study.folders.results),
        "nnUNet_extTrainer": os.pathsep.join(trainers),
        "nnUNet_n_proc_DA": str(study.processes),
        "nnUNet_def_n_proc": str(study.processes),
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait must not keep a core from the augmentation
        "PYTHONUNBUFFERED": "1",
    }

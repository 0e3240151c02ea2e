"""How long a training step takes on this machine, without data and before anything is preprocessed."""

import math
import time
import warnings
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_locctx.location import LOCATION_CHANNELS
from nnunet_locctx.nnunet.training.trainer import LocatedTrainer
from nnunet_locctx.nnunet.training.trainers import find_trainer

STEPS = 5
ENOUGH_VOXELS = 64**3
PATIENCE = 20.0
"""Seconds after which no further step is timed."""


def step_seconds(
    plans: Mapping[str, Any],
    configuration: str,
    trainer: str,
    dataset_json: Mapping[str, Any],
    device: str,
    *,
    steps: int = STEPS,
) -> float:
    """The median time of forward pass, backward pass and update, of random patches.

    On a CPU a batch that fills it takes as much longer as it has patches: no more of them are timed than hold
    :data:`ENOUGH_VOXELS`, and one at least. Loss, data loading and augmentation are not in it.

    Args:
        plans: nnU-Net's.
        configuration: Its name in them.
        trainer: Name, suffixes included.
        dataset_json: The dataset's description.
        device: ``cpu``, ``cuda`` or ``mps``.
        steps: How many to time, after one that warms up.

    Raises:
        ValueError: The trainer does not take the configuration.
    """
    manager = PlansManager(deepcopy(dict(plans)))
    planned = manager.get_configuration(configuration)
    classes = manager.get_label_manager(dataset_json).num_segmentation_heads
    channels = determine_num_input_channels(manager, planned, dataset_json)
    with warnings.catch_warnings():  # of other trainers' modules, which nnU-Net imports to look for this one
        warnings.simplefilter("ignore")
        kind = find_trainer(trainer) or recursive_find_trainer_class_by_name(trainer)
    with torch.random.fork_rng():
        network = (
            kind.build_network_architecture(manager, planned, channels, classes, True).to(device).train()
        )
        located = issubclass(kind, LocatedTrainer)
        enough = max(1, ENOUGH_VOXELS // math.prod(planned.patch_size))
        patches = min(planned.batch_size, enough) if device == "cpu" else planned.batch_size
        shape = (patches, channels + LOCATION_CHANNELS * located, *planned.patch_size)
        batch = torch.rand(shape, device=device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
    times: list[float] = []
    begun = time.monotonic()
    while len(times) <= steps and (len(times) < 2 or time.monotonic() - begun < PATIENCE):
        start = time.monotonic()
        with torch.autocast(device, enabled=device == "cuda"):
            outputs = network(batch)
            outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
            loss = torch.stack([output.float().square().mean() for output in outputs]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device
        times.append(time.monotonic() - start)
    return float(torch.tensor(times[1:]).median()) * planned.batch_size / patches

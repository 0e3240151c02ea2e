"""Builds one network of scripts/benchmarks/blocks.py as nnU-Net does, and counts it or measures its time or memory.

That script calls :func:`answer` in a new process.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_locctx.networks.registry import network_class
from nnunet_locctx.nnunet.plans.topology import plan_topology
from nnunet_locctx.nnunet.training.trainer import LocatedTrainer
from nnunet_locctx.nnunet.training.trainers import find_trainer
from nnunet_locctx.nnunet.training.whole_network import WholeNetworkTrainer
from nnunet_locctx.study.seeding import PeakMemory
from scripts.benchmarks.harness import PLAIN, Clock, Record, unet_architecture

CHANNELS = 1
WARM_UP = 2
CONFIGURATION = "3d_fullres"


def make_plans(patch: list[int], planned_for: list[int], spacing: list[float], features: list[int]) -> Record:
    """Plans with one configuration; its patch must fit the U-Net's pooling, which is planned for another patch.

    nnU-Net's plan may use fewer stages than there are `features`.
    """
    topology = plan_topology(spacing, planned_for)
    if not topology.fits(patch):
        raise ValueError(
            f"patch {patch} is no multiple of {list(topology.total_stride)}, the pooling of {planned_for}"
        )
    strides, kernels = ([list(row) for row in rows] for rows in (topology.strides, topology.kernels))
    configuration = {
        "patch_size": patch,
        "batch_size": 1,
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"] * CHANNELS,
        "architecture": unet_architecture(features[: len(strides)], strides, kernels),
    }
    return {"plans_name": "Benchmark", "configurations": {CONFIGURATION: configuration}}


def trainer_class(name: str) -> Any:
    """A trainer of this package, or nnU-Net's own.

    Raises:
        ValueError: No such trainer.
    """
    trainer = nnUNetTrainer if name == PLAIN else find_trainer(name)
    if trainer is None:
        raise ValueError(f"no trainer {name!r}")
    return trainer


def deep_supervision(name: str, plans: Record) -> bool:
    """Whether the trainer trains with logits of several resolutions."""
    trainer = trainer_class(name)
    if not issubclass(trainer, WholeNetworkTrainer):
        return True
    configuration = plans["configurations"][CONFIGURATION]
    options = trainer.check_configuration(configuration)
    strides = network_class(trainer.network_name).supervision_strides(
        len(configuration["patch_size"]), **options
    )
    return len(strides) > 1


def build(name: str, plans: Record, classes: int, supervised: bool) -> nn.Module:
    """The trainer's network, built by nnU-Net's own call."""
    manager = PlansManager(plans)
    network: nn.Module = trainer_class(name).build_network_architecture(
        manager, manager.get_configuration(CONFIGURATION), CHANNELS, classes, supervised
    )
    return network


def make_input(name: str, patch: list[int], batch: int) -> Tensor:
    """Noise and, for located trainers, the location of a patch that is the whole volume: (batch, channels, *patch)."""
    image = torch.randn(batch, CHANNELS, *patch)
    if not issubclass(trainer_class(name), LocatedTrainer):
        return image
    grid = whole_volume(patch)
    return torch.cat([image, grid.expand(batch, *grid.shape)], dim=1)


def usable_patch(name: str, patches: list[list[int]], plans_of: Callable[[list[int]], Record]) -> list[int]:
    """The first patch that the trainer accepts.

    Raises:
        ValueError: The trainer accepts none.
    """
    trainer = trainer_class(name)
    errors = []
    for patch in patches:
        if not issubclass(trainer, WholeNetworkTrainer):
            return patch
        try:
            trainer.check_configuration(plans_of(patch)["configurations"][CONFIGURATION])
            return patch
        except ValueError as error:
            errors.append(str(error))
    raise ValueError("; ".join(errors))


# ------------------------------------------------------------------------------------------------------- measuring


def count_operations(network: nn.Module, x: Tensor) -> Record:
    """Parameters, and multiply-adds of one pass by torch's counter: of convolutions and linear layers, and all."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    counts = {str(operator): n // 2 for operator, n in counter.get_flop_counts()["Global"].items()}
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "convolutions": counts.get("aten.convolution", 0) + counts.get("aten.addmm", 0),
        "multiply_adds": sum(counts.values()),
    }


def whole_volume(patch: Sequence[int]) -> Tensor:
    """The location of a patch that is the whole volume: (3, *patch), along the reversed array axes."""
    axes = [(torch.arange(n, dtype=torch.float32) + 0.5) / n - 0.5 for n in patch]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flip(0)


def count(name: str, plans: Record, classes: int) -> Record:
    """Parameters, and multiply-adds of one prediction (batch 1, no deep supervision)."""

    def counted_on(device: str) -> Record:
        with torch.device(device):
            network = build(name, plans, classes, False).eval()
            x = make_input(name, plans["configurations"][CONFIGURATION]["patch_size"], 1)
        counted = count_operations(network, x)
        return {**{key: counted[key] for key in ("parameters", "multiply_adds")}, "counted_on": device}

    try:
        return counted_on("meta")
    except (RuntimeError, NotImplementedError):  # an operation needs values
        return counted_on("cpu")


class Runner:
    """A network with its input; both passes as nnU-Net runs them (32 bit, on a GPU autocast), without torch.compile."""

    def __init__(self, name: str, plans: Record, classes: int, batch: int, device: str) -> None:
        self.device = device
        self.network = build(name, plans, classes, deep_supervision(name, plans)).to(device)
        self.x = make_input(name, plans["configurations"][CONFIGURATION]["patch_size"], batch).to(device)

    def forward(self) -> None:
        """A prediction."""
        self.network.eval()
        with torch.no_grad(), torch.autocast(self.device, enabled=self.device == "cuda"):
            self.network(self.x)

    def step(self) -> None:
        """Forward and backward pass in training mode."""
        self.network.train()
        self.network.zero_grad(set_to_none=True)
        with torch.autocast(self.device, enabled=self.device == "cuda"):
            outputs = self.network(self.x)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        torch.stack([output.float().square().mean() for output in outputs]).sum().backward()


def time_passes(job: Record, plans: Record) -> Record:
    """Seconds of both passes, for the plain network and the trainer's, alternating; one number per round."""
    runners = {
        kind: Runner(name, plans, job["classes"], job["batch"], job["device"])
        for kind, name in (("plain", PLAIN), ("own", job["trainer"]))
    }
    synchronise = torch.cuda.synchronize if job["device"] == "cuda" else lambda: None
    times: dict[str, dict[str, list[float]]] = {kind: {"forward": [], "step": []} for kind in runners}
    loads = []
    for number in range(-WARM_UP, job["rounds"]):
        kinds = list(runners) if number % 2 == 0 else list(runners)[::-1]
        for what in ("forward", "step"):
            for kind in kinds:
                run = getattr(runners[kind], what)
                synchronise()
                clock = Clock()
                for _ in range(job["repeats"]):
                    run()
                synchronise()
                taken = clock.per(job["repeats"])
                if number >= 0:
                    times[kind][what].append(taken["seconds"])
                    loads.append(taken["load"])
                runners[kind].network.zero_grad(set_to_none=True)
    return {**times, "load": max(loads)}


def watch_memory(job: Record, plans: Record) -> Record:
    """Peak bytes of network, input, activations and gradients, for both passes."""
    # libraries load first
    nn.Conv3d(1, 1, 3).to(job["device"])(torch.zeros(1, 1, 8, 8, 8, device=job["device"]))
    peak = PeakMemory(job["device"])
    runner = Runner(job["trainer"], plans, job["classes"], job["batch"], job["device"])
    runner.forward()
    forward = peak.read()
    runner.step()
    return {"forward": forward, "step": peak.read()}


def answer(job: Record) -> Record:
    """The measurement of one job; see ``scripts/benchmarks/blocks.py:Settings.job``."""
    torch.manual_seed(0)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    if job["device"] == "cuda":
        torch.backends.cudnn.benchmark = True  # as nnU-Net

    def plans_of(patch: list[int]) -> Record:
        return make_plans(patch, job["planned_for"], job["spacing"], job["features"])

    patch = usable_patch(job["trainer"], job["patches"], plans_of)
    if job["part"] == "size":
        measured = count(job["trainer"], plans_of(patch), job["classes"])
    else:
        measured = {"time": time_passes, "memory": watch_memory}[job["part"]](job, plans_of(patch))
    return {"patch": patch, **measured}

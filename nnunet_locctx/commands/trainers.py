"""`locctx trainers`: the folder that nnUNet_extTrainer must name."""

import argparse
from typing import Any

from nnunet_locctx.commands.common import CLEAN, add_command
from nnunet_locctx.resources import trainers_folder


def add(commands: Any) -> None:
    """Adds the parser."""
    add_command(
        commands,
        "trainers",
        run,
        "print the folder that nnUNet_extTrainer must name",
        "Prints the folder in which nnU-Net finds this package's trainers, and nothing else.",
        """
        export nnUNet_extTrainer="$(locctx trainers)"
        nnUNetv2_train 3 3d_fullres 0 -tr LocCtxTrainer
        """,
    )


def run(_: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    print(trainers_folder())
    return CLEAN

"""Patches of a TorchIO queue that know where they lie: `python examples/torchio_patches.py` (extra `torchio`)."""

import tempfile
from pathlib import Path

import torch
import torchio as tio
from made_up import mean_dice, write_scans
from monai.networks.nets import UNet
from torch import nn

from nnunet_locctx import Located, make_block
from nnunet_locctx.pipelines.torchio import AddLocation, LocateScan

PATCH = 12


def transform(*augmenting: tio.Transform) -> tio.Compose:
    """The whole scan is located first, the location added last; between them the patient may be moved and mirrored."""
    return tio.Compose([LocateScan(), tio.RescaleIntensity((0, 1)), *augmenting, AddLocation()])


def main(folder: Path, epochs: int = 60) -> float:
    """Trains on patches, predicts a new scan patch by patch, and prints the mean Dice of the balls.

    Args:
        folder: Takes the made-up scans.
        epochs: One step of 16 patches each.
    """
    torch.manual_seed(0)
    unet = UNet(3, 1, 3, channels=(8, 16), strides=(2,), norm="instance")
    network = Located(unet, make_block("prior", 3, 3), image_channels=1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-2)
    *training, new = [
        tio.Subject(image=tio.ScalarImage(files["image"]), label=tio.LabelMap(files["label"]))
        for files in write_scans(folder, 5)
    ]
    moving = transform(tio.RandomFlip(axes=("Left",)), tio.RandomAffine(degrees=10, translation=5))
    sampler = tio.LabelSampler(PATCH, "label", {0: 1, 1: 1, 2: 1})
    queue = tio.Queue(tio.SubjectsDataset(training, moving), 16, 4, sampler, num_workers=0)
    for _ in range(epochs):
        for batch in tio.SubjectsLoader(queue, batch_size=16, num_workers=0):
            logits = network(batch["image"][tio.DATA])
            loss = nn.functional.cross_entropy(logits, batch["label"][tio.DATA][:, 0].long())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    # behind 0 the location goes on by itself
    grid = tio.GridSampler(transform()(new), PATCH, 4, padding_mode=0)
    aggregator = tio.GridAggregator(grid, overlap_mode="hann")
    network.eval()
    with torch.no_grad():
        for batch in tio.SubjectsLoader(grid, batch_size=8, num_workers=0):
            aggregator.add_batch(network(batch["image"][tio.DATA]), batch[tio.LOCATION])
    dice = mean_dice(aggregator.get_output_tensor().argmax(0).numpy(), new["label"].data[0].numpy())
    print(f"mean Dice of two balls that only their side tells apart: {dice:.2f}")
    return dice


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))

"""Patches of TorchIO's queue that know where they lie: `python examples/torchio_patches.py` (needs the extra `torchio`)."""

import tempfile
from pathlib import Path

import torch
import torchio as tio
from torch import nn

from nnunet_locctx import Located, make_block
from nnunet_locctx.phantoms import make_phantom
from nnunet_locctx.pipelines.torchio import AddLocation, LocateScan

PATCH = 16
CLASSES = 7


def transform(*augmentations: tio.Transform) -> tio.Compose:
    """The whole scan is located first, the location added last; between them the patient may be moved and mirrored."""
    return tio.Compose(
        [
            LocateScan(),
            tio.ToCanonical(),
            tio.Clamp(-100, 200),
            tio.RescaleIntensity((0, 1)),
            *augmentations,
            AddLocation(),
        ]
    )


def main(steps: int = 150) -> float:
    """Trains on patches, predicts a new scan patch by patch, and prints the mean Dice of the organs.

    Args:
        steps: Of training.
    """
    torch.manual_seed(0)
    network = Located(convolutions(), make_block("prior", CLASSES, 3), image_channels=1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-2)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_phantom(folder, 1, cases=6, test_cases=1, size=32, spacing=6)
        augmented = transform(tio.RandomFlip(axes=("Left",)), tio.RandomAffine(scales=0.1, degrees=5))
        training = tio.SubjectsDataset(subjects(dataset, "Tr"), transform=augmented)
        sampler = tio.LabelSampler(PATCH, "label", {0: 1, **dict.fromkeys(range(1, CLASSES), 1)})
        queue = tio.Queue(training, max_length=48, samples_per_volume=8, sampler=sampler, num_workers=0)
        step = 0
        while step < steps:
            for batch in tio.SubjectsLoader(queue, batch_size=16, num_workers=0):
                logits = network(batch["image"][tio.DATA])
                weight = torch.tensor([0.2, *[1.0] * (CLASSES - 1)])
                loss = nn.functional.cross_entropy(logits, batch["label"][tio.DATA][:, 0].long(), weight)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                step += 1
        test = transform()(subjects(dataset, "Ts")[0])
    grid = tio.GridSampler(test, PATCH, 8, padding_mode=0)  # 0: in its padding the location goes on by itself
    aggregator = tio.GridAggregator(grid, overlap_mode="hann")
    network.eval()
    with torch.no_grad():
        for batch in tio.SubjectsLoader(grid, batch_size=8, num_workers=0):
            aggregator.add_batch(network(batch["image"][tio.DATA]), batch[tio.LOCATION])
    found, truth = aggregator.get_output_tensor().argmax(0), test["label"].data[0]
    scores = [
        float(2 * ((found == c) & (truth == c)).sum() / ((found == c).sum() + (truth == c).sum()))
        for c in range(1, CLASSES)
    ]
    mean = sum(scores) / len(scores)
    print(f"mean Dice of six organs that only their place tells apart: {mean:.2f}")
    return mean


def subjects(dataset: Path, part: str) -> list[tio.Subject]:
    """Scans and labels of a raw dataset of nnU-Net."""
    found = []
    for label in sorted((dataset / f"labels{part}").iterdir()):
        image = dataset / f"images{part}" / label.name.replace(".nii", "_0000.nii")
        subject = tio.Subject(image=tio.ScalarImage(image), label=tio.LabelMap(label))
        subject.load()
        found.append(subject)
    return found


def convolutions() -> nn.Sequential:
    """A network that sees nine voxels along each axis."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 12), (12, 12), (12, 12)):
        layers += [
            nn.Conv3d(inputs, outputs, 3, padding=1),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv3d(12, CLASSES, 3, padding=1))


if __name__ == "__main__":
    main()

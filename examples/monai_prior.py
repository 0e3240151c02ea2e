"""A MONAI U-Net that knows where its patch lies: `python examples/monai_prior.py`.

The phantom's six organs look alike, and seven other things look like them: only the place tells which is which, and a
patch does not show it. A prior head on the logits does.
"""

import tempfile
from pathlib import Path

import torch
from monai import transforms as mt
from monai.data import DataLoader, Dataset
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks.nets import UNet

from nnunet_locctx import AddLocationd, LocateScand, Located, make_block
from nnunet_locctx.phantoms import make_phantom

PATCH = (16, 16, 16)
CLASSES = 7
BOTH = ("image", "label")


def loading() -> list[mt.Transform]:
    """What training and prediction share. Each scan of the phantom is stored in another orientation: that is no matter."""
    return [
        mt.LoadImaged(BOTH),
        mt.EnsureChannelFirstd(BOTH),
        LocateScand("image"),  # the whole scan, before anything is cropped or turned
        mt.ScaleIntensityRanged("image", -100, 200, 0, 1, clip=True),
    ]


def main(steps: int = 150) -> tuple[float, float]:
    """Trains on patches, predicts a new scan, and prints the mean Dice of the organs, with the location and without.

    Args:
        steps: Of training.
    """
    torch.manual_seed(0)
    train = mt.Compose(
        [
            *loading(),
            mt.RandCropByPosNegLabeld(BOTH, "label", PATCH, num_samples=8),
            mt.RandFlipd(BOTH, prob=0.5, spatial_axis=0),
            AddLocationd("image"),  # last: three channels behind the image's
        ]
    )
    train.set_random_state(0)
    unet = UNet(3, 1, CLASSES, channels=(8, 16), strides=(2,), num_res_units=1, norm="instance")
    network = Located(unet, make_block("prior", CLASSES, 3), image_channels=1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-2)
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_phantom(folder, 1, cases=6, test_cases=1, size=32, spacing=6)
        batches = DataLoader(Dataset(files(dataset, "Tr"), train), batch_size=2, shuffle=True)
        step = 0
        while step < steps:
            for batch in batches:
                optimiser.zero_grad()
                loss(network(batch["image"].as_tensor()), batch["label"].as_tensor()).backward()
                optimiser.step()
                step += 1
        test = mt.Compose([*loading(), AddLocationd("image")])(files(dataset, "Ts")[0])
    x, truth = test["image"].as_tensor()[None], test["label"].as_tensor()[None]
    unknown = torch.cat([x[:, :1], torch.full_like(x[:, 1:], torch.nan)], dim=1)
    network.eval()
    with_location, without = dice(network, x, truth), dice(network, unknown, truth)
    print(f"mean Dice of six organs: {with_location:.2f} with the location, {without:.2f} if it is unknown")
    return with_location, without


def files(dataset: Path, part: str) -> list[dict[str, Path]]:
    """Images and labels of a raw dataset of nnU-Net."""
    labels = sorted((dataset / f"labels{part}").iterdir())
    return [
        {"label": label, "image": dataset / f"images{part}" / label.name.replace(".nii", "_0000.nii")}
        for label in labels
    ]


def dice(network: Located, x: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean Dice of the foreground classes."""
    with torch.no_grad():
        logits = sliding_window_inference(x, PATCH, 4, network, overlap=0.5)
    one_hot = mt.AsDiscrete(to_onehot=CLASSES)
    found, true = one_hot(logits[0].argmax(0, keepdim=True)), one_hot(truth[0])
    return float(compute_dice(found[None], true[None], include_background=False).mean())


if __name__ == "__main__":
    main()

"""A MONAI U-Net that knows where its patch lies: `python examples/monai_prior.py`.

Patches of one ball do not show whether it is the left or the right one. A prior head on the logits knows.
"""

import tempfile
from pathlib import Path

import torch
from made_up import mean_dice, write_scans
from monai import transforms as mt
from monai.data import CacheDataset, DataLoader
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import UNet

from nnunet_locctx import AddLocationd, Located, LocateScand, make_block

PATCH = (12, 12, 12)
BOTH = ("image", "label")
LOADING = (
    mt.LoadImaged(BOTH),
    mt.EnsureChannelFirstd(BOTH),
    LocateScand("image"),  # the whole scan, before anything is cropped or turned
    mt.ScaleIntensityRanged("image", -100, 200, 0, 1),
)


def main(steps: int = 40) -> tuple[float, float]:
    """Trains on patches and predicts a new scan; prints the Dice with its location and with an unknown one.

    Args:
        steps: Of training.
    """
    torch.manual_seed(0)
    augmenting = (
        mt.RandCropByPosNegLabeld(BOTH, "label", PATCH, pos=3, num_samples=4),
        mt.RandRotate90d(BOTH, prob=0.5, spatial_axes=(0, 2)),
        AddLocationd("image"),  # last: three channels behind the image's
    )
    unet = UNet(3, 1, 3, channels=(8, 16), strides=(2,), norm="instance")
    network = Located(unet, make_block("prior", 3, 3), image_channels=1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-2)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    with tempfile.TemporaryDirectory() as folder:
        *training, new = write_scans(Path(folder), 5)
        dataset = CacheDataset(
            training, mt.Compose([*LOADING, *augmenting]).set_random_state(0), progress=False
        )
        scan = mt.Compose([*LOADING, AddLocationd("image")])(new)
    batches = DataLoader(dataset, batch_size=4)  # 16 patches
    for _ in range(steps):
        for batch in batches:
            optimiser.zero_grad()
            loss(network(batch["image"].as_tensor()), batch["label"].as_tensor()).backward()
            optimiser.step()
    image = scan["image"].as_tensor()[None]
    nowhere = torch.cat([image[:, :1], torch.full_like(image[:, 1:], torch.nan)], dim=1)
    network.eval()
    scores = []
    for x in (image, nowhere):
        with torch.no_grad():
            logits = sliding_window_inference(x, PATCH, 4, network, overlap=0.5)
        scores.append(mean_dice(logits[0].argmax(0).numpy(), scan["label"][0].numpy()))
    print(f"mean Dice: {scores[0]:.2f} with the location, {scores[1]:.2f} if it is unknown")
    return scores[0], scores[1]


if __name__ == "__main__":
    main()

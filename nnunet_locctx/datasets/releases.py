"""The releases that `locctx convert` knows, by name."""

from __future__ import annotations

from nnunet_locctx.datasets.acdc import Acdc
from nnunet_locctx.datasets.amos22 import Amos22
from nnunet_locctx.datasets.brats import Brats
from nnunet_locctx.datasets.btcv import Btcv, Synapse
from nnunet_locctx.datasets.kits23 import Kits23
from nnunet_locctx.datasets.release import Release

RELEASES: dict[str, type[Release]] = {
    release.key: release for release in (Synapse, Btcv, Amos22, Kits23, Acdc, Brats)
}

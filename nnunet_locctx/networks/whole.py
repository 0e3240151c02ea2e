"""Base of the networks that replace the planned one."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from nnunet_locctx.blocks import Encoding, GlobalEncoding
from nnunet_locctx.networks.inputs import LocationPyramid, check_input_shape, split_input
from nnunet_locctx.types import Logits, NetworkInput

LogitsOfAnyResolution: TypeAlias = Float[Tensor, "batch classes ..."]


class WholeNetwork(nn.Module):
    """A network of its own, in the place of the planned U-Net.

    Subclasses take the arguments below and their own options after them, keyword-only and each with a default: these
    are what a configuration's ``network`` key may set.

    Args:
        image_channels: Channels of the image.
        classes: Channels of the logits.
        patch_size: Voxels along each axis, in array order; the network is made for this size.
        previous_channels: Channels of a cascade's previous stage, behind the location in the input.
        deep_supervision: Whether ``forward`` returns the logits of every supervised resolution.
        located: Whether the input carries the location (three channels behind the image).

    Attributes:
        supervision_weights: Weight of the loss at each supervised resolution, the finest first; a network without
            deep supervision has one.
        encoding_defaults: What is encoded unless the options say otherwise; None: a network without encodings.

    Raises:
        ValueError: An option or the patch size is not allowed.
    """

    supervision_weights: ClassVar[tuple[float, ...]] = (1.0,)
    encoding_defaults: ClassVar[Encoding | None] = GlobalEncoding(None)

    def __init__(
        self,
        image_channels: int,
        classes: int,
        patch_size: Sequence[int],
        previous_channels: int = 0,
        deep_supervision: bool = False,
        *,
        located: bool,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("image_channels", image_channels, 1),
            ("classes", classes, 1),
            ("previous_channels", previous_channels, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.image_channels, self.previous_channels = image_channels, previous_channels
        self.classes = classes
        self.patch_size = tuple(int(n) for n in patch_size)
        self.rank = len(self.patch_size)
        self.located = located
        self.deep_supervision = deep_supervision

    @property
    def decoder(self) -> "WholeNetwork":
        """Itself: nnU-Net switches deep supervision by ``network.decoder.deep_supervision``."""
        return self

    @classmethod
    @abstractmethod
    def patch_multiple(cls, rank: int, **options: Any) -> tuple[int, ...]:
        """Each side of the patch must be a multiple of this (and at least that long).

        Args:
            rank: Spatial axes, 2 or 3.
            **options: The network's options.
        """

    @classmethod
    def published(cls, **options: Any) -> dict[str, Any]:
        """The options `options` with those of the published form filled in: with these the network computes what its
        authors' code computes.

        Args:
            **options: The network's options; they win.

        Raises:
            ValueError: If the network has no such form.
        """
        raise ValueError(f"{cls.__name__} has no form 'published'; leave the option 'form' out")

    @classmethod
    def uses_location(cls, **options: Any) -> bool:
        """Whether a network with these options is a located one: here, whether it encodes location."""
        return options.get("encoding") is not None

    @classmethod
    def supervision_strides(cls, rank: int, **options: Any) -> tuple[tuple[int, ...], ...]:
        """Stride of each supervised resolution against the patch, the finest first."""
        return ((1,) * rank,)

    @classmethod
    def check_rank(cls, rank: int) -> None:
        """Raises ValueError unless the network has a form of that many spatial axes."""
        if rank not in (2, 3):
            raise ValueError(f"{cls.__name__} takes patches of 2 or 3 axes, got {rank}")

    @classmethod
    def check_patch(cls, patch_size: Sequence[int], **options: Any) -> None:
        """Raises ValueError, naming the nearest sizes that are allowed, unless the network can take the patch."""
        cls.check_rank(len(patch_size))
        multiple = cls.patch_multiple(len(patch_size), **options)
        if all(n >= m and n % m == 0 for n, m in zip(patch_size, multiple, strict=True)):
            return
        below = [max(m, n // m * m) for n, m in zip(patch_size, multiple, strict=True)]
        above = [max(m, -(-n // m) * m) for n, m in zip(patch_size, multiple, strict=True)]
        sizes = [below] if below == above else [below, above]
        sizes.sort(key=lambda size: sum(abs(a - b) for a, b in zip(size, patch_size, strict=True)))
        raise ValueError(
            f"patch_size {[int(n) for n in patch_size]} does not fit {cls.__name__}: each side must be a multiple of "
            f"{list(multiple)}; nearest allowed: {' or '.join(map(str, sizes))}"
        )

    def forward(self, x: NetworkInput) -> Logits | list[LogitsOfAnyResolution]:
        """Logits for a patch.

        Args:
            x: (B, image + 3 if located + previous stage, *patch).

        Returns:
            (B, classes, *patch); with deep supervision a list, highest resolution first.

        Raises:
            ValueError: If `x` has another number of channels or axes.
        """
        check_input_shape(x, self.image_channels, self.previous_channels, self.rank, self.located)
        if not self.located:
            return self.segment(x, None)
        image, location = split_input(x, self.image_channels, self.previous_channels, self.training)
        return self.segment(image, location)

    @abstractmethod
    def segment(self, image: Tensor, location: LocationPyramid | None) -> Tensor | list[Tensor]:
        """The network's forward pass.

        Args:
            image: [image | previous stage], (B, image + previous, *patch).
            location: None unless located.

        Returns:
            As ``forward``.
        """

"""Efficient paired attention: UNETR++'s transformer block."""

from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor, nn

from nnunet_locctx.blocks.coordconv import CONV
from nnunet_locctx.blocks.resolution import in_full_precision
from nnunet_locctx.types import Features

DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}

LAYER_SCALE = 1e-6
"""Weight of the attention in its residual at first."""


class PairedAttention(nn.Module):
    """Attention between channels and attention between tokens, from the same queries and keys (Shaker et al., "UNETR++:
    Delving Into Efficient and Accurate 3D Medical Image Segmentation", IEEE TMI 2024).

    Per head, with queries Q, keys K and values V, V' of shape (tokens N, width d), and with q and k for Q and K divided
    by the norm of each column, over all tokens:

    - channels: ``V softmax(t q^T k)^T``, a d x d attention;
    - tokens: ``softmax(t' q (E K + e)^T) (E V' + e)``, the N keys and values mapped to P by the matrix E and bias e.

    t and t' are learned temperatures, one for each head. Each result is mapped to half the channels, and both are
    concatenated. UNETR++'s code reads the result for the tokens as if its axes stood in another order, which hands each
    token the channels of others (`scrambled_tokens`); in the paper and in P-Network's code a token keeps its own.

    Args:
        channels: Channels C; an even multiple of `heads`.
        tokens: Number of tokens N.
        heads: Attention heads.
        projection: Number of keys and values P in the attention between tokens.
        dropout: Dropout of attention weights.
        activation: Whether a PReLU (one slope) follows the concatenation, as in the code of P-Network.
        scrambled_tokens: Whether the result for the tokens is read as in UNETR++'s code, see above.
        separate: Whether the values V' are mapped by a matrix and a bias of their own, as in UNETR++'s code for ACDC.
    """

    def __init__(
        self,
        channels: int,
        tokens: int,
        heads: int,
        projection: int,
        dropout: float,
        activation: bool = False,
        scrambled_tokens: bool = False,
        separate: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.scrambled_tokens = heads, dropout, scrambled_tokens
        self.channel_temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.token_temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.queries_keys_values = nn.Linear(channels, 4 * channels, bias=False)
        self.project = nn.Linear(tokens, projection)
        self.project_values = nn.Linear(tokens, projection) if separate else None
        self.token_output = nn.Linear(channels, channels // 2)
        self.channel_output = nn.Linear(channels, channels // 2)
        self.activation = nn.PReLU() if activation else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        # 4 x (B, heads, d, N)
        parts = self.queries_keys_values(tokens).unflatten(2, (4, self.heads, -1)).permute(2, 0, 3, 4, 1)
        query, key, channel_value, token_value = parts.unbind()
        rate = self.dropout if self.training else 0.0
        keys = self.project(key).transpose(2, 3)
        values = (self.project_values or self.project)(token_value).transpose(2, 3)
        # the sum of squares over all tokens exceeds half precision
        query = F.normalize(in_full_precision(query), dim=3).to(token_value.dtype)
        key = F.normalize(in_full_precision(key), dim=3).to(token_value.dtype)

        # not scaled_dot_product_attention: few rows as long as all tokens are what its kernels are worst at
        similarity = in_full_precision(query @ key.transpose(2, 3)) * self.channel_temperature
        weights = F.dropout(similarity.softmax(dim=3), rate).to(channel_value.dtype)
        between_channels = (weights @ channel_value).flatten(1, 2).transpose(1, 2)

        query = (query * self.token_temperature).to(keys.dtype).transpose(2, 3)
        between_tokens = F.scaled_dot_product_attention(query, keys, values, dropout_p=rate, scale=1.0)
        if self.scrambled_tokens:  # (width, heads, tokens) taken for (tokens, heads, width)
            between_tokens = between_tokens.permute(0, 3, 1, 2).reshape(tokens.shape)
        else:
            between_tokens = between_tokens.transpose(1, 2).flatten(2)

        both = (self.token_output(between_tokens), self.channel_output(between_channels))
        return cast(Tensor, self.activation(torch.cat(both, dim=2)))


class PairedAttentionBlock(nn.Module):
    """``y = x + p + g * attention(norm(x + p))``, then ``y + conv1x1(dropout(residual block(y)))``.

    p is a learned position embedding, one vector for each token of the patch and zero at first; g scales each channel
    and is 1e-6 at first. The residual block is MONAI's, 3x3 with batch normalisation; UNETR++'s code for ACDC has two
    of them, one after the other, and maps keys and values apart (`twofold`).

    Args:
        channels: Channels C; an even multiple of `heads`.
        size: Tokens along each axis.
        heads: Attention heads.
        projection: Number of keys and values in the attention between tokens.
        attention_dropout: Dropout of attention weights.
        dropout: Dropout of whole channels before the last convolution.
        position: Whether there is a position embedding.
        activation: Whether a PReLU follows the attention.
        scrambled_tokens: See :class:`PairedAttention`.
        twofold: See above.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, ...],
        heads: int,
        projection: int,
        *,
        attention_dropout: float,
        dropout: float,
        position: bool = True,
        activation: bool = False,
        scrambled_tokens: bool = False,
        twofold: bool = False,
    ) -> None:
        super().__init__()
        rank, tokens = len(size), 1
        for n in size:
            tokens *= n
        self.position = nn.Parameter(torch.zeros(1, tokens, channels)) if position else None
        self.norm = nn.LayerNorm(channels)
        self.scale = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.attention = PairedAttention(
            channels,
            tokens,
            heads,
            projection,
            attention_dropout,
            activation,
            scrambled_tokens,
            separate=twofold,
        )
        self.residual = UnetResBlock(rank, channels, channels, kernel_size=3, stride=1, norm_name="batch")
        self.second = (
            UnetResBlock(rank, channels, channels, kernel_size=3, stride=1, norm_name="batch")
            if twofold
            else nn.Identity()
        )
        self.mix = nn.Sequential(DROPOUT[rank](dropout), CONV[rank](channels, channels, 1))

    def forward(self, features: Features) -> Features:
        """(B, C, *size) -> (B, C, *size)."""
        tokens = features.flatten(2).transpose(1, 2)
        if self.position is not None:
            tokens = tokens + self.position
        tokens = tokens + self.scale * self.attention(self.norm(tokens))
        features = tokens.transpose(1, 2).reshape(features.shape)
        return features + self.mix(self.second(self.residual(features)))

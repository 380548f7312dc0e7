"""Synthesised attention for the feature maps of convolutional networks."""

from __future__ import annotations

import torch
from torch import nn

from ..modeling.hosts_hf_lam import Host, HostTokens
from ..modeling.stt_attention_hf_lam import IMPLEMENTATIONS, stt_attention
from ..modeling.stt_config_hf_lam import SYNTHESIZERS, SttConfig
from ..modeling.stt_synthesizers_hf_lam import AttentionSynthesizer


class SttAttention2d(nn.Module):
    """A residual block that mixes the positions of a feature map without queries and keys (STT, arXiv 2201.01410).

    `Y = X + W_O · (W_V X ×_1 A_H ×_2 A_W)`, with one row-stochastic matrix for the rows of the map, one for its
    columns, and `W_V` and `W_O` on the channels. `W_O` starts at 0, so the block starts as the identity: put it into a
    pretrained network anywhere, and nothing changes until it is trained.

    Args:
        channels: `C`.
        max_size: the largest `(H, W)` that it takes; smaller maps use a part of the matrices.
        num_heads: groups of channels, each with matrices of its own; divides `channels`.
        variant: `"dense"`, `"random"`, `"factorized_dense"` or `"factorized_random"`; see `SttConfig`.
        bottleneck_size: width of the hidden layer of the dense variants; see `SttConfig`.
        rank: rank of `"factorized_random"`; see `SttConfig`.
        frozen: keep the parameters of a random variant as they were drawn; see `SttConfig`.
        implementation: `"auto"`, or `"eager"` for the reference, which forms the map.

    Raises:
        ValueError: for values outside the above; the message names them.

    Shapes: `(B, C, H, W)` to `(B, C, H, W)`.
    """

    def __init__(
        self,
        channels: int,
        max_size: tuple[int, int],
        num_heads: int = 1,
        variant: str = "dense",
        *,
        bottleneck_size: int | None = None,
        rank: int | None = None,
        frozen: bool = False,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        if variant not in SYNTHESIZERS:
            raise ValueError(f"SttAttention2d: variant must be one of {list(SYNTHESIZERS)}, got {variant!r}.")
        if not isinstance(max_size, (tuple, list)) or len(max_size) != 2:
            raise ValueError(f"SttAttention2d: max_size must be (height, width), got {max_size!r}.")
        for name, number in (("channels", channels), ("num_heads", num_heads)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"SttAttention2d: {name} must be an integer of at least 1, got {number!r}.")
        if channels % num_heads:
            raise ValueError(f"SttAttention2d: {channels} channels do not divide into {num_heads} heads.")
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"SttAttention2d: implementation must be one of {list(IMPLEMENTATIONS)}, got {implementation!r}."
            )
        config = SttConfig(
            variant, grid=list(max_size), prefix_tokens=0, bottleneck_size=bottleneck_size, rank=rank, frozen=frozen
        )
        name = type(self).__name__
        host = Host(
            name=name,
            hidden_size=channels,
            num_heads=num_heads,
            head_size=channels // num_heads,
            num_layers=1,
            initializer_range=0.02,
            tokens=HostTokens(name, None),
        )
        self.config = config.resolve(host)
        self.num_heads = num_heads
        self.implementation = implementation
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.synthesis = AttentionSynthesizer(self.config, channels, num_heads, host.initializer_range)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the identity."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` to the same; a `ValueError` if `H` or `W` is beyond `max_size`."""
        axes = self.synthesized(feature_map)
        # (B, heads, H·W, C / heads)
        value = self.value(feature_map).unflatten(1, (self.num_heads, -1)).flatten(3).transpose(2, 3)
        mixed = stt_attention(value, axes, implementation=self.implementation)
        mixed = mixed.transpose(2, 3).reshape(feature_map.shape)
        return feature_map + self.out(mixed)

    def synthesized(self, feature_map: torch.Tensor) -> list[torch.Tensor]:
        """The matrices of the rows, `(B or 1, heads, H, H)`, and of the columns, `(B or 1, heads, W, W)`."""
        channels = self.value.in_channels
        if feature_map.dim() != 4 or feature_map.shape[1] != channels:
            raise ValueError(
                f"SttAttention2d takes feature maps (B, {channels}, H, W), got {tuple(feature_map.shape)}."
            )
        height, width = feature_map.shape[2:]
        grid = self.config.grid
        assert grid is not None
        if height > grid[0] or width > grid[1] or 0 in (height, width):
            raise ValueError(
                f"the feature map is {height} × {width}, but this SttAttention2d was made for sizes from 1 × 1 to "
                f"max_size={tuple(grid)}."
            )
        tokens = feature_map.flatten(2).transpose(1, 2)
        axes, _ = self.synthesis(tokens, (height, width)).weights()
        return axes

    def extra_repr(self) -> str:
        return f"variant={self.config.variant!r}, max_size={tuple(self.config.grid or ())}, num_heads={self.num_heads}"

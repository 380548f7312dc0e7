"""Token merging (ToMe; Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461) in a DINOv2.

The rival that views and synthesised attention are compared with. In every layer, between attention and feed-forward
layer, `r` tokens are merged into the most similar of the others:

    A, B   the tokens at even and at odd places
    edge   every token of A draws one to that of B whose key is most similar (cosine, keys averaged over the heads)
    merge  along the r most similar edges: the mean of the tokens, weighted by how many patches each stands for
    `[CLS]` is never merged
    A = softmax(Q Kᵀ / sqrt(D) + log s)     s: how many patches a token stands for

Features of all patches are asked for here, so that the last hidden state has one row for each again: that of the token
into which the patch was merged.

This file is saved beside the model, which loads with `trust_remote_code=True`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model
from transformers.modeling_outputs import BaseModelOutputWithPooling


class MergingDinov2Config(Dinov2Config):
    """A `Dinov2Config` with `merged_tokens`, how many each layer merges (`r`)."""

    model_type = "merging_dinov2"
    merged_tokens: int = 0


class MergingDinov2Model(Dinov2Model):
    """A `Dinov2Model` whose layers hand on fewer and fewer tokens."""

    config_class = MergingDinov2Config

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False, **kwargs: Any) -> Any:
        """Features of all tokens, `[CLS]` first.

        Args:
            pixel_values: `(B, 3, height, width)`.
            output_hidden_states: also those after each layer.

        Returns:
            `last_hidden_state` and `hidden_states` are `(B, 1 + patches, d)`, `pooler_output` is `(B, d)`.
        """
        hidden = self.embeddings(pixel_values)
        batch, length, _ = hidden.shape
        size = hidden.new_ones(batch, length)
        place = torch.arange(length, device=hidden.device).expand(batch, -1)
        states = [hidden]
        layers: Any = self.encoder.layer
        for layer in layers:
            added, keys = attend(layer.attention, layer.norm1(hidden), size)
            hidden = hidden + layer.layer_scale1(added)
            target = match_tokens(keys, self.config.merged_tokens)
            hidden, size = merge_tokens(hidden, size, target)
            place = target.gather(1, place)
            hidden = hidden + layer.layer_scale2(layer.mlp(layer.norm2(hidden)))
            if output_hidden_states:
                states.append(spread_tokens(hidden, place))
        last = spread_tokens(self.layernorm(hidden), place)
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=last[:, 0],
            hidden_states=tuple(states) if output_hidden_states else None,
        )


MergingDinov2Config.register_for_auto_class()
MergingDinov2Model.register_for_auto_class("AutoModel")


def attend(attention: Any, hidden: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The output of an attention module, with tokens weighted by the number of patches they stand for.

    Args:
        attention: a `Dinov2Attention`.
        hidden: `(B, L, d)`, its input.
        size: `(B, L)`.

    Returns:
        `(B, L, d)`, and the keys, as a mean over the heads, `(B, L, D)`.
    """
    keys: list[Tensor] = []
    hook = attention.k_proj.register_forward_hook(lambda module, given, key: keys.append(key))
    try:
        added, _ = attention(hidden, attention_mask=size.log().to(hidden.dtype)[:, None, None, :])
    finally:
        hook.remove()
    return added, keys[0].unflatten(-1, (-1, attention.head_dim)).mean(2)


@torch.no_grad()
def match_tokens(keys: Tensor, count: int) -> Tensor:
    """Find the token that each becomes: bipartite soft matching.

    Args:
        keys: `(B, L, D)`; the first is that of `[CLS]`.
        count: number of tokens to merge, at most every second one.

    Returns:
        `(B, L)` with places from 0 to `L − count − 1`. Those that stay keep their order, and `[CLS]` is 0.
    """
    batch, length, _ = keys.shape
    keys = nn.functional.normalize(keys.float(), dim=-1)
    even, odd = keys[:, ::2], keys[:, 1::2]
    count = max(0, min(count, even.shape[1] - 1))
    target = torch.arange(length, device=keys.device).repeat(batch, 1)
    if count and odd.shape[1]:
        similarity, best = (even @ odd.transpose(1, 2)).max(-1)
        similarity[:, 0] = -torch.inf
        merged = similarity.topk(count, dim=-1).indices
        target.scatter_(1, 2 * merged, 2 * best.gather(1, merged) + 1)
    stays = target == torch.arange(length, device=keys.device)
    return (stays.cumsum(1) - 1).gather(1, target)


def merge_tokens(hidden: Tensor, size: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The means of the tokens with one target, weighted by their sizes, and the sums of these.

    Args:
        hidden: `(B, L, d)`.
        size: `(B, L)`.
        target: `(B, L)`, what `match_tokens` gave.

    Returns:
        `(B, L', d)` and `(B, L')`.
    """
    length = int(target.max()) + 1
    sizes = size.new_zeros(len(size), length).scatter_add(1, target, size)
    share = (size / sizes.gather(1, target)).unsqueeze(-1)
    index = target.unsqueeze(-1).expand_as(hidden)
    return hidden.new_zeros(len(hidden), length, hidden.shape[-1]).scatter_add(1, index, hidden * share), sizes


def spread_tokens(hidden: Tensor, place: Tensor) -> Tensor:
    """`(B, L', d)` to `(B, L, d)`: for every token of the input what became of it."""
    return hidden.gather(1, place.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))

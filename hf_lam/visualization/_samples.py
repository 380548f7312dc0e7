"""The contents of the pictures: the attention layers of a model, one sample of a batch, and its tokens."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from ..modeling.injection_hf_lam import InjectedEncoder, encoders_with, injected_encoders, injection_of
from ..modeling.mechanism_hf_lam import Attended, Attention
from ..modeling.mechanism_registry_hf_lam import config_class_of
from ..observing import FusedTokens, evaluation_mode, observing, run_encoder


def encoder_with(model: nn.Module, name: str, description: str) -> Any:
    """The one encoder of `model` that has the mechanism `name`; a `ValueError` if there is none or more than one.

    description: what the mechanism gives a model, for the message.
    """
    encoders = encoders_with(model, name)
    if len(encoders) != 1:
        raise ValueError(
            f"expected a model with {description} in one encoder, {type(model).__name__} has them in {len(encoders)}. "
            f"Use hf_lam.convert or hf_lam.inject with {config_class_of(name).__name__}(...) first, or pass the "
            "encoder you mean."
        )
    return encoders[0]


def number_of_layers(base: InjectedEncoder) -> int:
    return len(injection_of(base).layers)


def of_each_layer(
    model: nn.Module, base: InjectedEncoder, inputs: Mapping[str, Any], take: Callable[[Attention], Any]
) -> list[Any]:
    """Run `model`, in evaluation mode and without gradients, and return what `take` makes of every layer of `base`.

    Of an encoder that runs several times, as that of an embedding model for its two sides, the last time counts.
    """
    taken: dict[int, Any] = {}

    def take_and_attend(attention: Attention, attend: Callable[[Attention], Attended]) -> Attended:
        taken[attention.layer] = take(attention)
        return attend(attention)

    with torch.no_grad(), evaluation_mode(model), observing(base, take_and_attend):
        run_encoder(model, inputs)
    return [taken[index] for index in sorted(taken)]


def chosen_layers(layers: Sequence[int] | None, count: int) -> list[int]:
    """`layers`, or all of them; a `ValueError` for what is not one of `count` layers."""
    if layers is None:
        return list(range(count))
    if not layers or any(not isinstance(layer, int) or not 0 <= layer < count for layer in layers):
        raise ValueError(f"layers must be numbers from 0 to {count - 1}, at least one, got {list(layers)}.")
    return list(layers)


def group_layers(layers: Sequence[int] | None, count: int, most: int) -> list[range]:
    """The layers that are drawn together, as their mean: those that are given one by one, or else all `count` of them.

    Of more than `most`, neighbours come together, in groups that differ by at most one layer.
    """
    if layers is not None:
        return [range(layer, layer + 1) for layer in chosen_layers(layers, count)]
    groups = min(count, most)
    starts = [-(-index * count // groups) for index in range(groups + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def name_group(group: range) -> str:
    """`layer 3`, or `layers 0–2`."""
    return f"layer {group[0]}" if len(group) == 1 else f"layers {group[0]}–{group[-1]}"


def describe_groups(groups: Sequence[range]) -> str:
    """Describe how a picture shows all layers."""
    count = groups[-1].stop
    if count == 1:
        return "the only layer"
    if len(groups) == count:
        return f"the {count} layers, layer by layer"
    return f"the {count} layers, in {len(groups)} groups of neighbours"


def mean_of(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of matrices of one shape."""
    return torch.stack(list(matrices)).mean(dim=0)


def describe_model(model: nn.Module) -> str:
    """Name the model in a picture: its class, and the repository that it was loaded from."""
    name = getattr(getattr(model, "config", None), "name_or_path", None) or ""
    # Folders of this machine are nobody else's business.
    is_repository = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not os.path.exists(name)
    return f"{type(model).__name__} ({name})" if is_repository else type(model).__name__


def of_sample(maps: torch.Tensor, sample: int, head: int | None, per_head: bool = False) -> torch.Tensor:
    """`(B, 1 or H, R, C)` to the `(R, C)` of one sample and head, or of the mean over heads.

    per_head: a single head is that of the host, and not one mask for all of its heads.
    """
    batch, heads = maps.shape[:2]
    check_sample(sample, batch)
    if head is None:
        return maps[sample].mean(dim=0)
    if heads == 1 and not per_head:
        raise ValueError(f"head={head} was asked for, but the masks are the same for all heads; leave head out.")
    if not 0 <= head < heads:
        raise ValueError(f"head must be from 0 to {heads - 1}, got {head}.")
    return maps[sample, head]


def check_sample(sample: int, batch: int) -> None:
    if not 0 <= sample < batch:
        raise ValueError(f"sample must be from 0 to {batch - 1} (the inputs hold {batch}), got {sample}.")


class ShownTokens(NamedTuple):
    """The tokens of one sample that a picture shows.

    kept: `(L,)` bool, false for padding and for the tokens of a modality that the sample does not have.
    modalities: number of tokens of each modality that the sample has, for a fusion model.
    """

    kept: torch.Tensor
    modalities: dict[str, int]

    def cut(self, matrix: torch.Tensor) -> torch.Tensor:
        """`(L, L)` without the other rows and columns; keys before the tokens, of a prefix, are left out too."""
        return matrix[self.kept][:, -len(self.kept) :][:, self.kept]

    def describe(self) -> str:
        """Describe how many there are."""
        number = int(self.kept.sum())
        parts = ", ".join(f"{number} of {name}" for name, number in self.modalities.items())
        return f"{number} tokens ({parts})" if parts else f"{number} tokens"

    def names(self, tokens: Sequence[str] | None) -> list[str] | None:
        """The names of those that are kept; a `ValueError` unless `tokens` names all `L`."""
        if tokens is None:
            return None
        length = len(self.kept)
        if len(tokens) != length:
            raise ValueError(f"tokens must name all {length} tokens of the sequence, got {len(tokens)}.")
        return [name for name, keep in zip(tokens, self.kept.tolist(), strict=True) if keep]


def shown_tokens(
    base: InjectedEncoder, inputs: Mapping[str, Any], sample: int, length: int, fused: Sequence[FusedTokens]
) -> ShownTokens:
    """Choose what to show of a sample of `length` tokens.

    fused: result of `fused_tokens_of`, which is empty unless the model is a fusion model.
    """
    if not fused:
        return ShownTokens(unpadded(inputs, sample, length), {})
    of_pass = fused[-1]
    kept = of_pass.counts[sample].cpu()
    counts = [int(part.sum()) for part in kept.split(list(of_pass.lengths))]
    named = zip(base.config.modalities, counts, strict=True)
    return ShownTokens(kept, {name: count for name, count in named if count})


def unpadded(inputs: Mapping[str, Any], sample: int, length: int) -> torch.Tensor:
    """The tokens that are not padding, `(L,)` of bool."""
    attention_mask = inputs.get("attention_mask")
    if attention_mask is None or attention_mask.dim() != 2 or attention_mask.shape[1] < length:
        return torch.ones(length, dtype=torch.bool)
    return attention_mask[sample, -length:].bool().cpu()  # of a prefix, too, there is a mask


def pixels_of(inputs: Mapping[str, Any], sample: int) -> torch.Tensor:
    """The image of a sample, `(C, height, width)`."""
    pixels: torch.Tensor = inputs["pixel_values"][sample]
    return pixels.detach().float().cpu()


def patch_grid(model: nn.Module, pixels: torch.Tensor, length: int, instead: str) -> tuple[int, int]:
    """Patches down and across. The `L` tokens are those patches, and before them the prefix tokens of the encoder.

    instead: function that draws other inputs, for the message.
    """
    grid = find_patch_grid(model, pixels)
    if grid is None:
        patch = getattr(_image_config(model), "patch_size", None)
        raise ValueError(
            f"{type(model).__name__} does not read images in square patches (config.patch_size={patch!r}, "
            f"{pixels.dim()} dimensions of pixel values a sample instead of 3); use {instead}."
        )
    if not is_of_patches(model, length, grid):
        raise ValueError(
            f"{length} tokens are not the {grid[0]} × {grid[1]} patches of the image and a few prefix tokens; use "
            f"{instead}."
        )
    return grid


def find_patch_grid(model: nn.Module, pixels: torch.Tensor) -> tuple[int, int] | None:
    """Square patches down and across the image of a sample; None if `model` does not read it in such."""
    patch = getattr(_image_config(model), "patch_size", None)
    if not isinstance(patch, int) or pixels.dim() != 3:
        return None
    return pixels.shape[1] // patch, pixels.shape[2] // patch


def _image_config(model: nn.Module) -> Any:
    """The configuration that says how images are cut: the encoder's, which that of a model around it may hold."""
    return next((base.config for base in injected_encoders(model)), getattr(model, "config", None))


def is_of_patches(model: nn.Module, length: int, grid: tuple[int, int]) -> bool:
    """Whether `length` tokens are the patches of a grid, and before them at most a few prefix tokens."""
    most = max([5, *(injection_of(base).host.tokens.prefix for base in injected_encoders(model))])
    return 0 <= length - grid[0] * grid[1] <= most

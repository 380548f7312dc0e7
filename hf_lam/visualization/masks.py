"""Learnable attention masks as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..modeling.injection_hf_lam import injection_of
from ..modeling.lam_hf_lam import LamConfig
from ..modeling.mechanism_hf_lam import Attention
from ..observing import fused_tokens_of
from ._drawing import (
    diverging_colours,
    draw_matrix,
    draw_on_image,
    matplotlib_figure,
    name_tokens,
    panel_size,
)
from ._examples import Drawn, Example, register_pictures
from ._samples import (
    chosen_layers,
    encoder_with,
    of_each_layer,
    of_sample,
    patch_grid,
    pixels_of,
    shown_tokens,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def encoder_with_masks(model: nn.Module) -> Any:
    """The one encoder of `model` that has learnable attention masks; a `ValueError` if there is none or more."""
    return encoder_with(model, LamConfig.name, "learnable attention masks")


def learned_masks(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The masks that `model` computes for `inputs`.

    Args:
        model: a model with learnable attention masks in one encoder.
        inputs: what the model is called with, such as `{"pixel_values": ...}` or a tokenizer's output.

    Returns:
        One tensor per mask, `(B, 1, L, L)` or with `per_head` `(B, H, L, L)`: one per layer, or a single one with
        `scope="shared"`. The model is left as it was; nothing records gradients.

    Raises:
        ValueError: if the model does not have masks in exactly one encoder.
    """

    def take(attention: Attention) -> torch.Tensor | None:
        if is_shared and attention.layer:
            return None
        change = attention.of_pass.change_scores(attention, [LamConfig.name])
        mask: Any = change.addend if config.adds else change.factor
        return mask.float().cpu()

    base = encoder_with_masks(model)
    config: LamConfig = injection_of(base).configs[LamConfig.name]
    is_shared = config.is_shared
    masks = of_each_layer(model, base, inputs, take)
    return masks[:1] if is_shared else masks


def plot_masks(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    sample: int = 0,
    head: int | None = None,
    layers: Sequence[int] | None = None,
    tokens: Sequence[str] | None = None,
) -> Figure:
    """Heat maps of the masks of one sample: one panel per layer, or a single one for a shared mask.

    White leaves a score as it is: 1, or 0 where the masks are added. Red strengthens it, blue weakens it or, below 0
    in masks that multiply, turns it around. All panels have the same scale. Padding is cut off; of a fusion model,
    also the modalities that the sample does not have, and lines part the others.

    Args:
        model: a model with learnable attention masks.
        inputs: what the model is called with; `B` samples of `L` tokens.
        sample: which of the `B`.
        head: with `per_head` masks, which head; `None` is the mean over heads.
        layers: the masks of which layers; all of them unless given.
        tokens: `L` names for the axes (padding included), for example `tokenizer.convert_ids_to_tokens(...)`; those of
            the modalities unless given.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no masks, or there is no such sample, head, layer or number of tokens.
    """
    figure_class = matplotlib_figure()
    base = encoder_with_masks(model)
    with fused_tokens_of(base) as fused:
        masks = [of_sample(mask, sample, head) for mask in learned_masks(model, inputs)]
    titles = _titles(len(masks))
    chosen = chosen_layers(layers, len(masks))
    shown = shown_tokens(base, inputs, sample, masks[0].shape[-1], fused)
    names = shown.names(tokens)
    masks = [shown.cut(masks[layer]) for layer in chosen]

    columns = min(len(masks), 4)
    rows = -(-len(masks) // columns)
    size = panel_size(names)
    figure = figure_class(figsize=(size * columns + 0.9, size * rows + 0.5), layout="constrained", dpi=150)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    config: LamConfig = injection_of(base).configs[LamConfig.name]
    colours = diverging_colours(masks, config.neutral)
    for panel, layer, mask in zip(panels, chosen, masks, strict=False):
        draw_matrix(panel, mask, colours)
        panel.set_title(titles[layer], fontsize=9)
        name_tokens(panel, names, shown.modalities)
    for panel in panels[len(masks) :]:
        panel.remove()
    figure.supxlabel("key token", fontsize=9)
    figure.supylabel("query token", fontsize=9)
    figure.colorbar(colours, ax=panels[: len(masks)], label="mask M", shrink=0.8, pad=0.01)
    return figure


def plot_mask_on_image(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    sample: int = 0,
    head: int | None = None,
    layers: Sequence[int] | None = None,
    query: int | None = None,
) -> Figure:
    """Where on the image the masks strengthen attention, and where they weaken it.

    The image, and beside it for each mask its value at every patch (as a key), laid over the image.

    Args:
        model: a model with learnable attention masks on square image patches, such as a ViT.
        inputs: what the model is called with; its `pixel_values` are `(B, C, height, width)`.
        sample: which of the `B`.
        head: with `per_head` masks, which head; `None` is the mean over heads.
        layers: the masks of which layers; all of them unless given.
        query: the token that attends: 0 is `[CLS]`; `None` is the mean over all tokens.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the tokens are not the patches of one image, or there is no such sample, head, layer or query.
    """
    figure_class = matplotlib_figure()
    masks = [of_sample(mask, sample, head) for mask in learned_masks(model, inputs)]
    pixels = pixels_of(inputs, sample)
    length = masks[0].shape[-1]
    grid = patch_grid(model, pixels, length, "plot_masks")
    if query is not None and not 0 <= query < length:
        raise ValueError(f"query must be a token from 0 to {length - 1}, got {query}.")
    chosen = chosen_layers(layers, len(masks))
    rows = [masks[layer].mean(dim=0) if query is None else masks[layer][query] for layer in chosen]
    patches = [row[-grid[0] * grid[1] :].reshape(grid) for row in rows]

    titles = [_titles(len(masks))[layer] for layer in chosen]
    config: LamConfig = injection_of(encoder_with_masks(model)).configs[LamConfig.name]
    colours = diverging_colours(patches, config.neutral)
    figure, _ = draw_on_image(figure_class, pixels, patches, titles, colours, "mask M")
    return figure


def _titles(masks: int) -> list[str]:
    return ["all layers"] if masks == 1 else [f"layer {index}" for index in range(masks)]


def _draw(example: Example) -> dict[str, Drawn]:
    """The pictures of masks that `save_pictures` draws."""
    model, inputs = example.model, example.inputs
    if inputs is None:
        return {}
    config: LamConfig = injection_of(example.base).configs[LamConfig.name]
    layers, described = ([0], "that all layers share") if config.is_shared else example.choose_layers()
    whose = described if config.is_shared else f"of {described}"
    heads, and_heads = (", mean over heads", " and heads") if config.per_head else ("", "")
    pictures = {
        "masks": (
            plot_masks(model, inputs, layers=layers, tokens=example.tokens),
            f"The learnable mask {whose}{heads}, for an example of {example.shown.describe()}: white is "
            f"{config.neutral:g} and leaves an attention score as it is, red strengthens it, blue weakens it.",
        )
    }
    grid = example.grid
    if grid is not None:
        pictures["masks_on_image"] = (
            plot_mask_on_image(model, inputs, layers=layers),
            f"The learnable mask {whose}, mean over queries{and_heads}, on the {grid[0]} × {grid[1]} patches of an "
            "image: red patches have their scores strengthened, blue ones weakened, white ones left as they are.",
        )
    return pictures


register_pictures(LamConfig.name, _draw)

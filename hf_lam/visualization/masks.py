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
    choose_names,
    columns_of,
    diverging_colours,
    draw_matrix,
    finish_matrices,
    is_every_token_named,
    matplotlib_figure,
    name_tokens,
    panel_side,
    room_for_names,
    titled_figure,
)
from ._examples import Drawn, Example, register_pictures
from ._image import COLUMNS, ImageColumn, draw_beside_image, most_of
from ._nearly_constant import draw_nearly_constant, is_nearly_constant
from ._samples import (
    describe_model,
    encoder_with,
    group_layers,
    mean_of,
    name_group,
    of_each_layer,
    of_sample,
    patch_grid,
    pixels_of,
    shown_tokens,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Panels of one picture; of more layers, neighbours come together.
_MOST_PANELS = 6
# Of the values of all masks; the few beyond get the last colour, or they alone would be seen.
_SHARE = 0.98


def encoder_with_masks(model: nn.Module) -> Any:
    """The one encoder of `model` that has learnable attention masks; a `ValueError` if there is none or more."""
    return encoder_with(model, LamConfig.name, "learnable attention masks")


def learned_masks(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The masks that `model` computes for `inputs`.

    Args:
        model: a model with learnable attention masks in one encoder.
        inputs: arguments of the model, such as `{"pixel_values": ...}` or a tokenizer's output.

    Returns:
        One tensor per mask, `(B, 1, L, L)` or with `per_head` `(B, H, L, L)`: one per layer, or a single one with
        `scope="shared"`. The model is left as it was; nothing records gradients.

    Raises:
        ValueError: if the model does not have masks in exactly one encoder.

    Examples:
        >>> from hf_lam import LamConfig, convert
        >>> from hf_lam.flops import example_inputs
        >>> from hf_lam.visualization import learned_masks
        >>> model = convert("google/vit-base-patch16-224", LamConfig())
        >>> masks = learned_masks(model, example_inputs(model))
        >>> len(masks) == model.config.num_hidden_layers
        True
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
    """Heat maps of the masks of one sample: a panel per layer, or a single one for a shared mask.

    White leaves a score as it is: 1, or 0 where the masks are added. Red strengthens it, blue weakens it or, below 0
    in masks that multiply, turns it around. All panels have the same scale, which ends where 98 % of the values do.
    Padding is cut off; of a fusion model, also the modalities that the sample does not have, and lines part the
    others. Masks that are nearly the same for all tokens are drawn as what they are, a number for each layer.

    Args:
        model: a model with learnable attention masks.
        inputs: arguments of the model: `B` samples of `L` tokens.
        sample: index of the sample among the `B`.
        head: index of the head, with `per_head` masks; `None` is the mean over heads.
        layers: indices of the layers whose masks are drawn; all of them unless given, neighbours together, as their
            mean, where there are more than 6.
        tokens: `L` names for the axes (padding included), for example `tokenizer.convert_ids_to_tokens(...)`; those of
            the modalities unless given. Where there is no room for all, those that the masks change most are shown.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no masks, or there is no such sample, head, layer or number of tokens.

    Examples:
        >>> from hf_lam import LamConfig, convert
        >>> from hf_lam.flops import example_inputs
        >>> from hf_lam.visualization import plot_masks
        >>> model = convert("bert-base-uncased", LamConfig())
        >>> plot_masks(model, example_inputs(model)).savefig("masks.png")
    """
    figure_class = matplotlib_figure()
    base = encoder_with_masks(model)
    with fused_tokens_of(base) as fused:
        masks = [of_sample(mask, sample, head) for mask in learned_masks(model, inputs)]
    groups = group_layers(layers, len(masks), _MOST_PANELS)
    shown = shown_tokens(base, inputs, sample, masks[0].shape[-1], fused)
    names = shown.names(tokens)
    masks = [shown.cut(mask) for mask in masks]
    config: LamConfig = injection_of(base).configs[LamConfig.name]
    title = f"Learnable attention mask{'s' * (len(masks) > 1)} of {describe_model(model)}"
    if _are_nearly_constant(masks, groups, config.neutral):
        return _draw_nearly_constant(figure_class, title, masks, groups, config.neutral)

    matrices = [mean_of([masks[layer] for layer in group]) for group in groups]
    columns = columns_of(len(matrices))
    rows, side = -(-len(matrices) // columns), panel_side(columns)
    chosen = choose_names(mean_of([(m - config.neutral).abs().mean(dim=0) for m in matrices]), side)
    height = side * rows + 0.4 + room_for_names(names, chosen, shown.modalities)
    figure = titled_figure(figure_class, side * columns + 1.2, height, title)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    colours = diverging_colours(matrices, config.neutral, _SHARE)
    for panel, group, matrix in zip(panels, groups, matrices, strict=False):
        draw_matrix(panel, matrix, colours)
        panel.set_title(_titled(group, len(masks), matrix, config.neutral), fontsize=9)
        name_tokens(panel, names, chosen, shown.modalities, "black")
    finish_matrices(panels, len(matrices), columns, is_every_token_named(names, chosen))
    figure.colorbar(colours, ax=panels[: len(matrices)], label="mask M", shrink=0.6, pad=0.01, extend="both")
    return figure


def _titled(group: range, masks: int, mask: torch.Tensor, neutral: float) -> str:
    """The title of the panel of a mask, which says so if it has a single colour."""
    name = "all layers" if masks == 1 else name_group(group)
    return f"{name}: about {float(mask.mean()):.2f}" if is_nearly_constant(mask, neutral) else name


def _are_nearly_constant(values: Sequence[torch.Tensor], groups: Sequence[range], neutral: float) -> bool:
    return all(is_nearly_constant(values[layer], neutral) for group in groups for layer in group)


def _draw_nearly_constant(
    figure_class: type[Figure], title: str, values: Sequence[torch.Tensor], groups: Sequence[range], neutral: float
) -> Figure:
    layers = [layer for group in groups for layer in group]
    names = ["all layers"] if len(values) == 1 else [f"layer {layer}" for layer in layers]
    return draw_nearly_constant(figure_class, title, [values[layer] for layer in layers], names, neutral)


def plot_mask_on_image(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    sample: int = 0,
    head: int | None = None,
    layers: Sequence[int] | None = None,
    query: int | None = None,
) -> Figure:
    """Draw where on the image the masks strengthen attention, and where they weaken it.

    For each mask its value at every patch (as a key), below the image in its own colours. There, the tenth of the
    patches that the mask strengthens most has an outline, and the tenth that it weakens most has a dashed one. What is
    nearly the same for all patches is drawn as a number for each layer.

    Args:
        model: a model with learnable attention masks on square image patches, such as a ViT.
        inputs: arguments of the model; `pixel_values` are `(B, C, height, width)`.
        sample: index of the sample among the `B`.
        head: index of the head, with `per_head` masks; `None` is the mean over heads.
        layers: indices of the layers whose masks are drawn; all of them unless given, neighbours together, as their
            mean, where there are more than 4.
        query: the token that attends: 0 is `[CLS]`; `None` is the mean over all tokens.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the tokens are not the patches of one image, or there is no such sample, head, layer or query.

    Examples:
        >>> from hf_lam import LamConfig, convert
        >>> from hf_lam.flops import example_inputs
        >>> from hf_lam.visualization import plot_mask_on_image
        >>> model = convert("google/vit-base-patch16-224", LamConfig())
        >>> figure = plot_mask_on_image(model, example_inputs(model), query=0)
    """
    figure_class = matplotlib_figure()
    masks = [of_sample(mask, sample, head) for mask in learned_masks(model, inputs)]
    pixels = pixels_of(inputs, sample)
    length = masks[0].shape[-1]
    grid = patch_grid(model, pixels, length, "plot_masks")
    if query is not None and not 0 <= query < length:
        raise ValueError(f"query must be a token from 0 to {length - 1}, got {query}.")
    groups = group_layers(layers, len(masks), COLUMNS)
    rows = [mask.mean(dim=0) if query is None else mask[query] for mask in masks]
    patches = [row[-grid[0] * grid[1] :].reshape(grid) for row in rows]
    config: LamConfig = injection_of(encoder_with_masks(model)).configs[LamConfig.name]
    of = "mean over queries" if query is None else f"query {query}"
    title = f"Learnable attention mask{'s' * (len(masks) > 1)} of {describe_model(model)} on an image, {of}"
    if _are_nearly_constant(patches, groups, config.neutral):
        return _draw_nearly_constant(figure_class, title, patches, groups, config.neutral)
    values = [mean_of([patches[layer] for layer in group]) for group in groups]
    columns = [
        ImageColumn(_titled(group, len(masks), map, config.neutral), {"": map}, [most_of(map), most_of(-map)])
        for group, map in zip(groups, values, strict=True)
    ]
    note = "Outlined: the tenth of the patches that the mask strengthens most; dashed: that it weakens most."
    colours = diverging_colours(values, config.neutral, _SHARE)
    return draw_beside_image(figure_class, title, pixels, columns, colours, "mask M", note, extend="both")


def _has_no_maps(figure: Figure) -> bool:
    return not any(panel.images for panel in figure.axes)


def _draw(example: Example) -> dict[str, Drawn]:
    """The pictures of masks that `save_pictures` draws."""
    model, inputs = example.model, example.inputs
    if inputs is None:
        return {}
    config: LamConfig = injection_of(example.base).configs[LamConfig.name]

    def whose(most: int) -> str:
        return "that all layers share" if config.is_shared else f"of {example.describe_layers(most)}"

    heads, and_heads = (", mean over heads", " and heads") if config.per_head else ("", "")
    of_example = f"for an example of {example.shown.describe()}"
    figure = plot_masks(model, inputs, tokens=example.tokens)
    neutral = f"{config.neutral:g} and leaves an attention score as it is"
    colours = f"white is {neutral}, red strengthens it, blue weakens it."
    if _has_no_maps(figure):
        colours = f"it is nearly constant, and the dashed line is {neutral}."
    pictures = {"masks": (figure, f"The learnable mask {whose(_MOST_PANELS)}{heads}, {of_example}: {colours}")}
    grid = example.grid
    if grid is not None:
        figure = plot_mask_on_image(model, inputs)
        colours = "red patches have their scores strengthened, blue ones weakened, white ones left as they are."
        if _has_no_maps(figure):
            colours = f"it is nearly constant, and the dashed line is {neutral}."
        pictures["masks_on_image"] = (
            figure,
            f"The learnable mask {whose(COLUMNS)}, mean over queries{and_heads}, on the {grid[0]} × {grid[1]} patches "
            f"of an image: {colours}",
        )
    return pictures


register_pictures(LamConfig.name, _draw)

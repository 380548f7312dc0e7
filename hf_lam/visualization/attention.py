"""The effect of a learnable attention mask on attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..modeling.attention_pass_hf_lam import attend
from ..modeling.injection_hf_lam import InjectedEncoder
from ..modeling.lam_hf_lam import LamConfig
from ..modeling.mechanism_hf_lam import Attention
from ..observing import fused_tokens_of
from ._drawing import (
    PANEL,
    WIDTH,
    add_note,
    choose_names,
    diverging_colours,
    draw_matrix,
    is_every_token_named,
    matplotlib_figure,
    name_tokens,
    room_for_names,
    titled_figure,
    weight_colours,
)
from ._examples import Drawn, Example, register_pictures
from ._image import COLUMNS, ImageColumn, draw_beside_image, most_of
from ._samples import (
    describe_model,
    group_layers,
    mean_of,
    name_group,
    number_of_layers,
    of_each_layer,
    of_sample,
    patch_grid,
    pixels_of,
    shown_tokens,
)
from .masks import encoder_with_masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rows of one picture; of more layers, neighbours come together.
_MOST_ROWS = 3
# Of the weights and differences; the few beyond get the last colour, or they alone would be seen (of `[SEP]`, say).
_SHARE = 0.98
_WITHOUT, _WITH = "without the mask", "with the mask"
# A mask that changes no weight by more changes nothing that can be seen.
_LEAST_DIFFERENCE = 1e-3


def attention_with_and_without_mask(model: nn.Module, inputs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """The attention weights of every layer with its learnable mask, and those of the same queries and keys without.

    The first are `softmax((QKᵀ/√D) ⊙ M + P)`, the second `softmax(QKᵀ/√D + P)`, with `P` the padding: `M` is left
    out of this one layer, whose input is what the layers before it made with their masks. Whatever else the model has
    stays in both: its views, also while they are annealed, and what a mixture with synthesised attention adds.

    Args:
        model: a model with learnable attention masks in one encoder.
        inputs: arguments of the model, such as `{"pixel_values": ...}` or a tokenizer's output.

    Returns:
        One pair per layer, each `(B, H, L, L)`, float32 and on the CPU. Rows sum to one; those of a query whose view
        has no keys are zero, or while annealing on their way there. The first of a pair is what the model returns
        with `output_attentions=True`, computed in at least float32. The model is left as it was; nothing records
        gradients.

    Raises:
        ValueError: if the model does not have masks in exactly one encoder.

    Examples:
        >>> from hf_lam import LamConfig, convert
        >>> from hf_lam.flops import example_inputs
        >>> from hf_lam.visualization import attention_with_and_without_mask
        >>> model = convert("google/vit-base-patch16-224", LamConfig())
        >>> with_mask, without = attention_with_and_without_mask(model, example_inputs(model))[0]
        >>> with_mask.shape == without.shape
        True
    """
    base = encoder_with_masks(model)
    return _pairs(model, base, inputs, range(number_of_layers(base)), lambda weights: weights)


def _pairs(
    model: nn.Module,
    base: InjectedEncoder,
    inputs: Mapping[str, Any],
    layers: Sequence[int],
    reduce: Callable[[Tensor], Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """Reduce the weights `(B, H, L, L)` of some layers by `reduce`, with their masks and without."""

    def both(attention: Attention) -> tuple[Tensor, Tensor] | None:
        if attention.layer not in layers:
            return None
        others = [name for name in attention.of_pass.injection.order if name != LamConfig.name]
        without = attention._replace(change=attention.of_pass.change_scores(attention, others))
        return reduce(_weigh(attention)), reduce(_weigh(without))

    pairs = of_each_layer(model, base, inputs, both)
    return [pairs[layer] for layer in layers]


def _weigh(attention: Attention) -> Tensor:
    """The attention weights of a layer."""
    # A model of half precision would round the two to weights whose difference is mostly rounding.
    query, key, value = (
        tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        for tensor in (attention.query, attention.key, attention.value)
    )
    _, weights = attend(attention._replace(query=query, key=key, value=value, dropout=0.0, want_weights=True))
    assert weights is not None
    return weights.float().cpu()


def plot_attention(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    sample: int = 0,
    head: int | None = None,
    layers: Sequence[int] | None = None,
    tokens: Sequence[str] | None = None,
) -> Figure:
    """Heat maps of the attention of one sample without the learnable mask, with it, and of what the mask changes.

    A row per layer. The first two columns have one scale; in the third white is no difference, red is more weight with
    the mask and blue is less. The scales end where 98 % of the values do. Padding is cut off; of a fusion model,
    also the modalities that the sample does not have, and lines part the others.

    Args:
        model: a model with learnable attention masks.
        inputs: arguments of the model: `B` samples of `L` tokens.
        sample: index of the sample among the `B`.
        head: index of the head; `None` is the mean over heads.
        layers: indices of the layers; all of them unless given, neighbours together, as their mean, where there are
            more than 3.
        tokens: `L` names for the axes (padding included), for example `tokenizer.convert_ids_to_tokens(...)`; those of
            the modalities unless given. Where there is no room for all, those that the mask changes most are shown.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no masks, or there is no such sample, head, layer or number of tokens.

    Examples:
        >>> from hf_lam import LamConfig, convert
        >>> from hf_lam.flops import example_inputs
        >>> from hf_lam.visualization import plot_attention
        >>> model = convert("bert-base-uncased", LamConfig())
        >>> figure = plot_attention(model, example_inputs(model), layers=[0, 1])
    """
    figure_class = matplotlib_figure()
    base = encoder_with_masks(model)
    groups = group_layers(layers, number_of_layers(base), _MOST_ROWS)
    with fused_tokens_of(base) as fused:
        with_mask, without = _of_groups(model, base, inputs, groups, sample, head)
    shown = shown_tokens(base, inputs, sample, with_mask[0].shape[-2], fused)
    names = shown.names(tokens)
    with_mask, without = ([shown.cut(weights) for weights in row] for row in (with_mask, without))
    difference = [left - right for left, right in zip(with_mask, without, strict=True)]

    title = f"Attention of {describe_model(model)}, {_of_head(head)}: what the learnable mask changes"
    chosen = choose_names(mean_of([matrix.abs().mean(dim=0) for matrix in difference]), PANEL)
    height = (PANEL - 0.1) * len(groups) + 1.2 + room_for_names(names, chosen, shown.modalities)
    figure = titled_figure(figure_class, WIDTH, height, title)
    panels = figure.subplots(len(groups), 3, squeeze=False)
    weights_scale = weight_colours([*with_mask, *without], _SHARE)
    difference_scale = diverging_colours(difference, 0, _SHARE)
    which = "" if is_every_token_named(names, chosen) else " (those that stand out)"
    for line, (row, group, *matrices) in enumerate(zip(panels, groups, without, with_mask, difference, strict=True)):
        for column, (panel, matrix) in enumerate(zip(row, matrices, strict=True)):
            draw_matrix(panel, matrix, difference_scale if column == 2 else weights_scale)
            name_tokens(panel, names, chosen, shown.modalities, "black" if column == 2 else "white")
            panel.tick_params(labelleft=not column, labelbottom=line == len(groups) - 1)
        row[0].set_ylabel(f"{name_group(group)}\nquery token", fontsize=9)
    for panel, name in zip(panels[0], (_WITHOUT, _WITH, "difference"), strict=True):
        panel.set_title(name, fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel(f"key token{which}", fontsize=8.5)
    below: dict[str, Any] = {"location": "bottom", "aspect": 40, "pad": 0.01}
    bars = [
        figure.colorbar(weights_scale, ax=panels[:, :2], label="attention weight", shrink=0.5, extend="max", **below),
        figure.colorbar(difference_scale, ax=panels[:, 2], label="difference", shrink=0.9, extend="both", **below),
    ]
    for bar in bars:
        bar.ax.tick_params(labelsize=7)
    if max(float(matrix.abs().max()) for matrix in difference) <= _LEAST_DIFFERENCE:
        add_note(figure, f"No weight differs by more than {_LEAST_DIFFERENCE:g}: the mask changes next to nothing.")
    return figure


def plot_attention_on_image(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    query: int = 0,
    sample: int = 0,
    head: int | None = None,
    layers: Sequence[int] | None = None,
) -> Figure:
    """Draw where a token looks with the learnable mask and without it: its weights on the patches, below the image.

    On the image, the tenth of the patches with the most weight with the mask has an outline.

    Args:
        model: a model with learnable attention masks on square image patches, such as a ViT.
        inputs: arguments of the model; `pixel_values` are `(B, C, height, width)`.
        query: number of the token that looks; 0 is `[CLS]`.
        sample: index of the sample among the `B`.
        head: index of the head; `None` is the mean over heads.
        layers: indices of the layers; all of them unless given, neighbours together, as their mean, where there are
            more than 4.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the tokens are not the patches of one image, or there is no such sample, head, layer or query.

    Examples:
        >>> from hf_lam import LamConfig, convert
        >>> from hf_lam.flops import example_inputs
        >>> from hf_lam.visualization import plot_attention_on_image
        >>> model = convert("google/vit-base-patch16-224", LamConfig())
        >>> figure = plot_attention_on_image(model, example_inputs(model))
    """
    figure_class = matplotlib_figure()
    base = encoder_with_masks(model)
    groups = group_layers(layers, number_of_layers(base), COLUMNS)
    with_mask, without = _of_groups(model, base, inputs, groups, sample, head)
    pixels = pixels_of(inputs, sample)
    length = with_mask[0].shape[-1]
    grid = patch_grid(model, pixels, length, "plot_attention")
    if not 0 <= query < length:
        raise ValueError(f"query must be a token from 0 to {length - 1}, got {query}.")
    seen, seen_without = (
        [weights[query, -grid[0] * grid[1] :].reshape(grid) for weights in row] for row in (with_mask, without)
    )
    columns = [
        ImageColumn(name_group(group), {_WITH: left, _WITHOUT: right}, [most_of(left)])
        for group, left, right in zip(groups, seen, seen_without, strict=True)
    ]
    every = [*seen, *seen_without]
    colours = weight_colours(every, _SHARE, lowest=min(float(map.min()) for map in every))
    title = f"Where token {query} of {describe_model(model)} looks, {_of_head(head)}"
    note = f"Outlined on the image: the tenth of the patches with the most weight {_WITH}."
    patch = query - (length - grid[0] * grid[1])
    place = None if patch < 0 else divmod(patch, grid[1])
    return draw_beside_image(
        figure_class,
        title,
        pixels,
        columns,
        colours,
        "attention weight",
        note,
        "max",
        place,
    )


def _of_head(head: int | None) -> str:
    return "mean over heads" if head is None else f"head {head}"


def _of_groups(
    model: nn.Module,
    base: InjectedEncoder,
    inputs: Mapping[str, Any],
    groups: Sequence[range],
    sample: int,
    head: int | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The weights `(L, L)` of one sample and head, or of the mean over heads, with the mask and without."""
    layers = sorted({layer for group in groups for layer in group})
    pairs = _pairs(model, base, inputs, layers, lambda weights: of_sample(weights, sample, head, per_head=True))
    of_layer = dict(zip(layers, pairs, strict=True))
    with_mask, without = ([mean_of([of_layer[x][side] for x in group]) for group in groups] for side in (0, 1))
    return with_mask, without


def _draw(example: Example) -> dict[str, Drawn]:
    """The pictures of attention that `save_pictures` draws."""
    model, inputs = example.model, example.inputs
    if inputs is None:
        return {}
    pictures = {
        "attention": (
            plot_attention(model, inputs, tokens=example.tokens),
            f"Attention of {example.describe_layers(_MOST_ROWS)}, mean over heads, for an example of "
            f"{example.shown.describe()}: without the learnable mask, with it, and the difference (red is more weight "
            "with the mask, blue is less, white is the same).",
        )
    }
    grid = example.grid
    if grid is not None:
        pictures["attention_on_image"] = (
            plot_attention_on_image(model, inputs),
            f"Where the first token looks in {example.describe_layers(COLUMNS)}, mean over heads, on the {grid[0]} × "
            f"{grid[1]} patches of an image, with the learnable mask and without it: yellow is much weight, dark blue "
            "is little, and on the image the patches with the most weight with the mask are outlined.",
        )
    return pictures


register_pictures(LamConfig.name, _draw)

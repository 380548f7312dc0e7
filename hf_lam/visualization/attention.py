"""What a learnable attention mask does to attention."""

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
    WEIGHT_COLOURS,
    WEIGHT_COLOURS_ON_IMAGE,
    diverging_colours,
    draw_matrix,
    draw_on_image,
    matplotlib_figure,
    name_tokens,
    panel_size,
    weight_colours,
)
from ._examples import Drawn, Example, register_pictures
from ._samples import (
    chosen_layers,
    number_of_layers,
    of_each_layer,
    of_sample,
    patch_grid,
    pixels_of,
    shown_tokens,
    spread_layers,
)
from .masks import encoder_with_masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Layers that have room side by side.
MOST_LAYERS = 6
# Of the weights and differences; the few beyond get the last colour, or they alone would be seen (of `[SEP]`, say).
_SHARE = 0.98
_ROWS = ("with the mask", "without", "difference")


def attention_with_and_without_mask(model: nn.Module, inputs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """The attention weights of every layer with its learnable mask, and those of the same queries and keys without.

    The first are `softmax((QKᵀ/√D) ⊙ M + P)`, the second `softmax(QKᵀ/√D + P)`, with `P` the padding: `M` is left
    out of this one layer, whose input is what the layers before it made with their masks. Whatever else the model has
    stays in both: its views, also while they are annealed, and what a mixture with synthesised attention adds.

    Args:
        model: a model with learnable attention masks in one encoder.
        inputs: what the model is called with, such as `{"pixel_values": ...}` or a tokenizer's output.

    Returns:
        One pair per layer, each `(B, H, L, L)`, float32 and on the CPU. Rows sum to one; those of a query whose view
        has no keys are zero, or while annealing on their way there. The first of a pair is what the model returns
        with `output_attentions=True`, computed in at least float32. The model is left as it was; nothing records
        gradients.

    Raises:
        ValueError: if the model does not have masks in exactly one encoder.
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
    """What `reduce` makes of the weights `(B, H, L, L)` of some layers, with their masks and without."""

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
    """Heat maps of the attention of one sample with the learnable mask, without it, and of what the mask changes.

    A column per layer. The first two rows have one scale; in the third white is no difference, red is more weight with
    the mask and blue is less. The scales end where 98 % of the values do. Padding is cut off; of a fusion model,
    also the modalities that the sample does not have, and lines part the others.

    Args:
        model: a model with learnable attention masks.
        inputs: what the model is called with; `B` samples of `L` tokens.
        sample: which of the `B`.
        head: which head; `None` is the mean over heads.
        layers: which layers; at most 6 from the first to the last unless given.
        tokens: `L` names for the axes (padding included), for example `tokenizer.convert_ids_to_tokens(...)`; those of
            the modalities unless given.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no masks, or there is no such sample, head, layer or number of tokens.
    """
    figure_class = matplotlib_figure()
    base = encoder_with_masks(model)
    chosen = _chosen(base, layers, MOST_LAYERS)
    with fused_tokens_of(base) as fused:
        with_mask, without = _of_layers(model, base, inputs, chosen, sample, head)
    shown = shown_tokens(base, inputs, sample, with_mask[0].shape[-2], fused)
    names = shown.names(tokens)
    with_mask, without = ([shown.cut(weights) for weights in row] for row in (with_mask, without))
    difference = [left - right for left, right in zip(with_mask, without, strict=True)]

    size = panel_size(names)
    figure = figure_class(figsize=(size * len(chosen) + 1.3, size * 3 + 0.5), layout="constrained", dpi=150)
    panels = figure.subplots(3, len(chosen), squeeze=False, sharex=True, sharey=True)
    weights_scale = weight_colours([*with_mask, *without], WEIGHT_COLOURS, _SHARE)
    difference_scale = diverging_colours(difference, 0, _SHARE)
    scales = (weights_scale, weights_scale, difference_scale)
    for row, matrices in enumerate((with_mask, without, difference)):
        for column, matrix in enumerate(matrices):
            draw_matrix(panels[row, column], matrix, scales[row])
            name_tokens(panels[row, column], names, shown.modalities)
        panels[row, 0].set_ylabel(f"{_ROWS[row]}\nquery token", fontsize=9)
    for panel, layer in zip(panels[0], chosen, strict=True):
        panel.set_title(f"layer {layer}", fontsize=9)
    for panel in panels.flat:
        panel.label_outer()
    figure.supxlabel("key token", fontsize=9)
    figure.colorbar(weights_scale, ax=panels[:2], label="attention weight", shrink=0.6, pad=0.01, extend="max")
    figure.colorbar(difference_scale, ax=panels[2:], label="difference", shrink=0.9, pad=0.01, extend="both")
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
    """Where a token looks with the learnable mask (first line) and without it (second), laid over the image.

    Args:
        model: a model with learnable attention masks on square image patches, such as a ViT.
        inputs: what the model is called with; its `pixel_values` are `(B, C, height, width)`.
        query: which token looks; 0 is `[CLS]`.
        sample: which of the `B`.
        head: which head; `None` is the mean over heads.
        layers: which layers; at most 6 from the first to the last unless given.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the tokens are not the patches of one image, or there is no such sample, head, layer or query.
    """
    figure_class = matplotlib_figure()
    base = encoder_with_masks(model)
    chosen = _chosen(base, layers, MOST_LAYERS)
    with_mask, without = _of_layers(model, base, inputs, chosen, sample, head)
    pixels = pixels_of(inputs, sample)
    length = with_mask[0].shape[-1]
    grid = patch_grid(model, pixels, length, "plot_attention")
    if not 0 <= query < length:
        raise ValueError(f"query must be a token from 0 to {length - 1}, got {query}.")
    above, below = (
        [weights[query, -grid[0] * grid[1] :].reshape(grid) for weights in row] for row in (with_mask, without)
    )
    titles = [f"layer {layer}, {row}" for row in _ROWS[:2] for layer in chosen]
    titles.insert(len(chosen), "")
    colours = weight_colours([*above, *below], WEIGHT_COLOURS_ON_IMAGE)
    figure, _ = draw_on_image(
        figure_class, pixels, [*above, None, *below], titles, colours, "attention weight", columns=len(chosen) + 1
    )
    return figure


def _chosen(base: InjectedEncoder, layers: Sequence[int] | None, most: int) -> list[int]:
    count = number_of_layers(base)
    return spread_layers(count, most) if layers is None else chosen_layers(layers, count)


def _of_layers(
    model: nn.Module,
    base: InjectedEncoder,
    inputs: Mapping[str, Any],
    layers: list[int],
    sample: int,
    head: int | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The weights `(L, L)` of one sample and head, or of the mean over heads, with the mask and without."""

    pairs = _pairs(model, base, inputs, layers, lambda weights: of_sample(weights, sample, head, per_head=True))
    with_mask, without = zip(*pairs, strict=True)
    return list(with_mask), list(without)


def _draw(example: Example) -> dict[str, Drawn]:
    """The pictures of attention that `save_pictures` draws."""
    model, inputs = example.model, example.inputs
    if inputs is None:
        return {}
    layers, described = example.choose_layers(MOST_LAYERS)
    pictures = {
        "attention": (
            plot_attention(model, inputs, layers=layers, tokens=example.tokens),
            f"Attention of {described}, mean over heads, for an example of {example.shown.describe()}: with the "
            "learnable mask, without it, and the difference (red is more weight with the mask, blue is less, white is "
            "the same).",
        )
    }
    grid = example.grid
    if grid is not None:
        pictures["attention_on_image"] = (
            plot_attention_on_image(model, inputs, layers=layers),
            f"Where the first token looks in {described}, mean over heads, on the {grid[0]} × {grid[1]} patches of an "
            "image, with the learnable mask (above) and without it (below): pink is much weight, light blue is none.",
        )
    return pictures


register_pictures(LamConfig.name, _draw)

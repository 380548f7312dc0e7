"""Synthetic attention maps (STT) as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..modeling.injection_hf_lam import injection_of
from ..modeling.mechanism_hf_lam import Attention
from ..modeling.mechanism_list_hf_lam import SttConfig
from ..modeling.stt_synthesizers_hf_lam import SyntheticLogits
from ._drawing import (
    WEIGHT_COLOURS,
    WEIGHT_COLOURS_ON_IMAGE,
    draw_matrix,
    draw_on_image,
    frame_patch,
    matplotlib_figure,
    name_step,
    panel_size,
    weight_colours,
)
from ._examples import Drawn, Example, register_pictures
from ._samples import (
    ShownTokens,
    chosen_layers,
    encoder_with,
    of_each_layer,
    of_sample,
    patch_grid,
    pixels_of,
    unpadded,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The axes of a grid, by how many there are.
AXES = {1: ("tokens",), 2: ("rows", "columns"), 3: ("steps", "rows", "columns")}


def synthetic_maps(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The synthetic attention maps of `model` for `inputs` (STT).

    Args:
        model: a model with synthesised attention in one encoder, pure or a mixture.
        inputs: what the model is called with, such as `{"pixel_values": ...}` or a tokenizer's output.

    Returns:
        One tensor per layer, `(B, H, L, L)`, whose rows sum to one. For a pure STT these are the weights that
        `output_attentions` returns; for a mixture, the map `P` that is mixed in, wherever `λ` is. The model is left as
        it was; nothing records gradients.

    Raises:
        ValueError: if the model does not have synthesised attention in exactly one encoder.
    """

    def take(attention: Attention) -> torch.Tensor:
        _, weights = _synthesize(attention).attend(attention._replace(dropout=0.0, want_weights=True))
        assert weights is not None
        return weights.float().cpu()

    return of_each_layer(model, _encoder_with_maps(model), inputs, take)


def synthetic_axes(model: nn.Module, inputs: Mapping[str, Any]) -> list[list[torch.Tensor]]:
    """What the synthetic maps are products of: the matrix of every axis of the grid.

    Args and errors are those of [`synthetic_maps`].

    Returns:
        One list per layer, with one tensor per axis, `(B, H, p + n_a, n_a)`: first the rows of the `p` prefix tokens,
        then one for every place on the axis. Rows sum to one. Places with nothing but padding get no weight.
    """

    def take(attention: Attention) -> list[torch.Tensor]:
        axes, _ = _synthesize(attention).weights()
        return [axis.float().cpu().expand(attention.value.shape[0], -1, -1, -1) for axis in axes]

    return of_each_layer(model, _encoder_with_maps(model), inputs, take)


def _synthesize(attention: Attention) -> SyntheticLogits:
    """The map of a layer; of a mixture, too, it is what would take the place of the scores."""
    of_pass = attention.of_pass
    return of_pass.dispatch.replace_scores(SttConfig.name, of_pass.read_layer(SttConfig.name, attention))


def _encoder_with_maps(model: nn.Module) -> Any:
    return encoder_with(model, SttConfig.name, "synthesised attention")


def plot_synthetic_maps(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    sample: int = 0,
    head: int | None = None,
    layers: Sequence[int] | None = None,
    tokens: Sequence[str] | None = None,
) -> Figure:
    """Heat maps of the matrices that the synthetic maps of one sample are products of: a panel per layer and axis.

    A row of a panel is where a place on the axis looks; the rows above the white line are those of prefix tokens. All
    panels have the same scale. On one axis, as for text, a panel is the whole map (but for what goes to prefix
    tokens), and padding is cut off.

    Args:
        model: a model with synthesised attention.
        inputs: what the model is called with; `B` samples of `L` tokens.
        sample: which of the `B`.
        head: which head; `None` is the mean over heads.
        layers: which layers; all of them unless given.
        tokens: `L` names for a single axis (padding and prefix included), for example
            `tokenizer.convert_ids_to_tokens(...)`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no synthesised attention, or there is no such sample, head, layer or number of
            tokens.
    """
    figure_class = matplotlib_figure()
    all_axes = synthetic_axes(model, inputs)
    chosen = chosen_layers(layers, len(all_axes))
    matrices = [[of_sample(axis, sample, head, per_head=True) for axis in all_axes[layer]] for layer in chosen]
    number = len(matrices[0])
    prefix = matrices[0][0].shape[0] - matrices[0][0].shape[1]
    names = None
    if tokens is not None and number > 1:
        raise ValueError(
            f"tokens name the places of a single axis, but this grid has {number} axes; leave tokens out."
        )
    if number == 1:
        length = matrices[0][0].shape[0]
        shown = ShownTokens(unpadded(inputs, sample, length), {})
        names, kept = shown.names(tokens), shown.kept
        matrices = [[axis[kept][:, kept[prefix:]]] for (axis,) in matrices]
        prefix = int(kept[:prefix].sum())

    columns = min(len(matrices), 4 if number == 1 else 6)
    blocks = -(-len(matrices) // columns)
    size = panel_size(names) if number == 1 else 1.9
    figure = figure_class(figsize=(size * columns + 0.9, size * blocks * number + 0.5), layout="constrained", dpi=150)
    panels = figure.subplots(blocks * number, columns, squeeze=False)
    colours = weight_colours([axis for axes in matrices for axis in axes], WEIGHT_COLOURS)
    axis_names = AXES.get(number) or tuple(f"axis {axis}" for axis in range(number))
    for index, (layer, axes) in enumerate(zip(chosen, matrices, strict=True)):
        for axis, weights in enumerate(axes):
            panel = panels[index // columns * number + axis, index % columns]
            draw_matrix(panel, weights, colours)
            panel.set_title(f"layer {layer}" if number == 1 else f"layer {layer}, {axis_names[axis]}", fontsize=9)
            _name_places(panel, weights.shape[1], prefix, names)
    unused = list(panels[-number:, len(matrices) - (blocks - 1) * columns :].flat)
    for panel in unused:
        panel.remove()
    figure.supxlabel("place that is seen", fontsize=9)
    figure.supylabel("place that looks", fontsize=9)
    figure.colorbar(
        colours, ax=[panel for panel in panels.flat if panel not in unused], label="weight", shrink=0.8, pad=0.01
    )
    return figure


def _name_places(panel: Axes, places: int, prefix: int, names: Sequence[str] | None) -> None:
    """Rows are the prefix tokens and the places on an axis, columns the places."""
    if prefix:
        panel.axhline(prefix - 0.5, color="white", linewidth=1.5)
    if names is not None:
        named = range(0, prefix + places, name_step(len(names)))
        panel.set_yticks(named, labels=[names[row] for row in named], fontsize=6)
        named = range(0, places, name_step(len(names)))
        panel.set_xticks(named, labels=[names[prefix + place] for place in named], rotation=90, fontsize=6)
        return
    shown = range(0, places, 1 + places // 8)
    panel.set_xticks(shown, labels=[str(place) for place in shown], fontsize=7)
    rows = [*range(prefix), *(prefix + place for place in shown)]
    labels = [*(["prefix"] * prefix), *(str(place) for place in shown)]
    panel.set_yticks(rows, labels=labels, fontsize=7)


def plot_map_on_image(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    query: int | tuple[int, int] | None = None,
    sample: int = 0,
    head: int | None = None,
    layers: Sequence[int] | None = None,
) -> Figure:
    """Where a patch looks: its row of the synthetic map of every layer, laid over the image.

    The image comes first, with a frame around the patch. With prefix tokens, each title says how much of the row goes
    to patches at all.

    Args:
        model: a model with synthesised attention on square image patches, such as a ViT.
        inputs: what the model is called with; its `pixel_values` are `(B, C, height, width)`.
        query: which token looks: its number (0 is `[CLS]`), or (row, column) of a patch; `None` is the mean over all.
        sample: which of the `B`.
        head: which head; `None` is the mean over heads.
        layers: which layers; all of them unless given.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the tokens are not the patches of one image, or there is no such sample, head, layer or query.
    """
    figure_class = matplotlib_figure()
    maps = [of_sample(weights, sample, head, per_head=True) for weights in synthetic_maps(model, inputs)]
    length = maps[0].shape[-1]
    pixels = pixels_of(inputs, sample)
    rows, columns = patch_grid(model, pixels, length, "plot_synthetic_maps")
    prefix = length - rows * columns
    token = _token_of(query, rows, columns, prefix)
    chosen = chosen_layers(layers, len(maps))
    seen = [maps[layer].mean(dim=0) if token is None else maps[layer][token] for layer in chosen]
    patches = [row[prefix:].reshape(rows, columns) for row in seen]
    titles = [f"layer {layer}" for layer in chosen]
    if prefix:
        titles = [f"{title}, {100 * float(grid.sum()):.0f} %" for title, grid in zip(titles, patches, strict=True)]
    colours = weight_colours(patches, WEIGHT_COLOURS_ON_IMAGE)
    figure, image = draw_on_image(figure_class, pixels, patches, titles, colours, "weight")
    if token is not None and token >= prefix:
        frame_patch(image, divmod(token - prefix, columns), (rows, columns), pixels)
    return figure


def _token_of(query: int | tuple[int, int] | None, rows: int, columns: int, prefix: int) -> int | None:
    """The number of a token that is given as such or as (row, column) of a patch."""
    if query is None:
        return None
    if isinstance(query, int):
        if not 0 <= query < prefix + rows * columns:
            raise ValueError(f"query must be a token from 0 to {prefix + rows * columns - 1}, got {query}.")
        return query
    if len(query) != 2 or not (0 <= query[0] < rows and 0 <= query[1] < columns):
        raise ValueError(f"query must be (row, column) of one of the {rows} × {columns} patches, got {query}.")
    return prefix + query[0] * columns + query[1]


def _draw(example: Example) -> dict[str, Drawn]:
    """The pictures of synthetic maps that `save_pictures` draws."""
    model, inputs = example.model, example.inputs
    if inputs is None:
        return {}
    places = injection_of(example.base).configs[SttConfig.name].grid
    layers, described = example.choose_layers()
    of = f"of {described}"
    is_text = len(places) == 1
    factors = "" if is_text else f" as factors along the axes of the {' × '.join(map(str, places))} grid,"
    pictures = {
        "synthetic_maps": (
            plot_synthetic_maps(model, inputs, layers=layers, tokens=example.tokens if is_text else None),
            f"The synthetic attention maps {of},{factors} mean over heads, for an example of "
            f"{example.shown.describe()}: rows look, columns are seen; yellow is much weight, dark blue is none.",
        )
    }
    grid = example.grid
    if grid is not None and tuple(places) == grid:
        middle = grid[0] // 2, grid[1] // 2
        has_prefix = len(example.shown.kept) > grid[0] * grid[1]
        share = "; titles say how much of it goes to patches at all" if has_prefix else ""
        pictures["synthetic_map_on_image"] = (
            plot_map_on_image(model, inputs, query=middle, layers=layers),
            f"Where the framed patch looks in the synthetic attention maps {of}, mean over heads, on the {grid[0]} × "
            f"{grid[1]} patches of an image: pink is much weight, light blue is none{share}.",
        )
    return pictures


register_pictures(SttConfig.name, _draw)

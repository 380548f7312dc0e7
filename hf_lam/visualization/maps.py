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
    NAME_SIZE,
    WIDTH,
    choose_names,
    columns_of,
    draw_matrix,
    matplotlib_figure,
    name_tokens,
    panel_side,
    room_for_names,
    titled_figure,
    unformatted,
    weight_colours,
)
from ._examples import Drawn, Example, register_pictures
from ._image import COLUMNS, ImageColumn, draw_beside_image, most_of
from ._samples import (
    ShownTokens,
    describe_model,
    encoder_with,
    group_layers,
    mean_of,
    name_group,
    of_each_layer,
    of_sample,
    patch_grid,
    pixels_of,
    unpadded,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Layers, or groups of neighbours, in one picture.
_MOST_PANELS = 6
# Of the weights; the few beyond get the last colour, or they alone would be seen.
_SHARE = 0.98
# The axes of a grid, by how many there are.
AXES = {1: ("tokens",), 2: ("rows", "columns"), 3: ("steps", "rows", "columns")}


def synthetic_maps(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The synthetic attention maps of `model` for `inputs` (STT).

    Args:
        model: a model with synthesised attention in one encoder, pure or a mixture.
        inputs: arguments of the model, such as `{"pixel_values": ...}` or a tokenizer's output.

    Returns:
        One tensor per layer, `(B, H, L, L)`, whose rows sum to one. For a pure STT these are the weights that
        `output_attentions` returns; for a mixture, the map `P` that is mixed in, wherever `λ` is. The model is left as
        it was; nothing records gradients.

    Raises:
        ValueError: if the model does not have synthesised attention in exactly one encoder.

    Examples:
        >>> from hf_lam import SttConfig, convert
        >>> from hf_lam.flops import example_inputs
        >>> from hf_lam.visualization import synthetic_maps
        >>> model = convert("google/vit-base-patch16-224", SttConfig())
        >>> maps = synthetic_maps(model, example_inputs(model))
        >>> len(maps) == model.config.num_hidden_layers
        True
    """

    def take(attention: Attention) -> torch.Tensor:
        _, weights = _synthesize(attention).attend(attention._replace(dropout=0.0, want_weights=True))
        assert weights is not None
        return weights.float().cpu()

    return of_each_layer(model, _encoder_with_maps(model), inputs, take)


def synthetic_axes(model: nn.Module, inputs: Mapping[str, Any]) -> list[list[torch.Tensor]]:
    """The matrices that the synthetic maps are products of, one for every axis of the grid.

    Args and errors are those of [`synthetic_maps`].

    Returns:
        One list per layer, with one tensor per axis, `(B, H, p + n_a, n_a)`: first the rows of the `p` prefix tokens,
        then one for every place on the axis. Rows sum to one. Places with nothing but padding get no weight.

    Examples:
        >>> from hf_lam import SttConfig, convert
        >>> from hf_lam.flops import example_inputs
        >>> from hf_lam.visualization import synthetic_axes
        >>> model = convert("google/vit-base-patch16-224", SttConfig())
        >>> rows, columns = synthetic_axes(model, example_inputs(model))[0]
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
    panels have the same scale, which ends where 98 % of the weights do. On one axis, as for text, a panel is the whole
    map (but for what goes to prefix tokens), and padding is cut off.

    Args:
        model: a model with synthesised attention.
        inputs: arguments of the model: `B` samples of `L` tokens.
        sample: index of the sample among the `B`.
        head: index of the head; `None` is the mean over heads.
        layers: indices of the layers; all of them unless given, neighbours together, as their mean, where there are
            more than 6.
        tokens: `L` names for a single axis (padding and prefix included), for example
            `tokenizer.convert_ids_to_tokens(...)`. Where there is no room for all, those that are
            seen most are shown.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no synthesised attention, or there is no such sample, head, layer or number of
            tokens.

    Examples:
        >>> from hf_lam import SttConfig, convert
        >>> from hf_lam.flops import example_inputs
        >>> from hf_lam.visualization import plot_synthetic_maps
        >>> model = convert("google/vit-base-patch16-224", SttConfig())
        >>> figure = plot_synthetic_maps(model, example_inputs(model), head=0)
    """
    figure_class = matplotlib_figure()
    all_axes = synthetic_axes(model, inputs)
    groups = group_layers(layers, len(all_axes), _MOST_PANELS)
    matrices = [
        [
            mean_of([of_sample(all_axes[layer][axis], sample, head, per_head=True) for layer in group])
            for axis in range(len(all_axes[0]))
        ]
        for group in groups
    ]
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

    is_text = number == 1
    columns = columns_of(len(groups)) if is_text else min(len(groups), _MOST_PANELS)
    blocks = -(-len(groups) // columns)
    side = panel_side(columns) if is_text else min(2.2, (WIDTH - 1.2) / columns)
    title = f"Synthetic attention maps of {describe_model(model)}" + ("" if is_text else ", axis by axis")
    chosen = choose_names(mean_of([axes[0].mean(dim=0) for axes in matrices]), side)
    below = room_for_names(None if names is None else names[prefix:], chosen, {})
    height = (side + 0.2) * blocks * number + (0.4 + below if is_text else 0.1 + below * blocks * number)
    figure = titled_figure(figure_class, max(side * columns + 1.2, 4), height, title)
    panels = figure.subplots(blocks * number, columns, squeeze=False)
    colours = weight_colours([axis for axes in matrices for axis in axes], _SHARE)
    axis_names = AXES.get(number) or tuple(f"axis {axis}" for axis in range(number))
    for index, (group, axes) in enumerate(zip(groups, matrices, strict=True)):
        for axis, weights in enumerate(axes):
            panel = panels[index // columns * number + axis, index % columns]
            draw_matrix(panel, weights, colours)
            if not axis:
                panel.set_title(name_group(group), fontsize=9)
            _name_places(panel, weights.shape[1], prefix, names, chosen)
            panel.tick_params(labelbottom=not is_text or index + columns >= len(groups))
            if index % columns:
                panel.tick_params(labelleft=False)
            elif not is_text:
                panel.set_ylabel(axis_names[axis], fontsize=9)
    unused = list(panels[-number:, len(groups) - (blocks - 1) * columns :].flat)
    for panel in unused:
        panel.remove()
    figure.supxlabel("place that is seen", fontsize=9)
    figure.supylabel("place that looks", fontsize=9)
    shown_panels = [panel for panel in panels.flat if panel not in unused]
    bar = figure.colorbar(colours, ax=shown_panels, label="weight", shrink=0.7, pad=0.01, extend="max")
    bar.ax.tick_params(labelsize=7)
    return figure


def _name_places(panel: Axes, places: int, prefix: int, names: Sequence[str] | None, chosen: Sequence[int]) -> None:
    """Rows are the prefix tokens and the places on an axis, columns the places.

    chosen: the places that have room for their names.
    """
    if prefix:
        panel.axhline(prefix - 0.5, color="white", linewidth=1.5)
    if names is not None:
        name_tokens(panel, names[prefix:], chosen, {}, "white")
        rows = [*range(prefix), *(prefix + place for place in chosen)]
        panel.set_yticks(rows, labels=unformatted([names[row] for row in rows]), fontsize=NAME_SIZE)
        return
    shown = range(0, places, 1 + places // 8)
    panel.set_xticks(shown, labels=[str(place) for place in shown], fontsize=7)
    # Where places are left out, there is no room for the first one below the prefix.
    shown = shown[1:] if prefix and shown.step > 1 else shown
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
    """Draw where a patch looks: its row of the synthetic map of every layer, below the image.

    The patch has a frame, and on the image the tenth of the patches with the most weight has an outline. With prefix
    tokens, each title says how much of the row goes to patches at all.

    Args:
        model: a model with synthesised attention on square image patches, such as a ViT.
        inputs: arguments of the model; `pixel_values` are `(B, C, height, width)`.
        query: token that looks, as its number (0 is `[CLS]`) or as (row, column) of a patch; `None` is the mean over
            all.
        sample: index of the sample among the `B`.
        head: index of the head; `None` is the mean over heads.
        layers: indices of the layers; all of them unless given, neighbours together, as their mean, where there are
            more than 4.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the tokens are not the patches of one image, or there is no such sample, head, layer or query.

    Examples:
        >>> from hf_lam import SttConfig, convert
        >>> from hf_lam.flops import example_inputs
        >>> from hf_lam.visualization import plot_map_on_image
        >>> model = convert("google/vit-base-patch16-224", SttConfig())
        >>> figure = plot_map_on_image(model, example_inputs(model), query=(0, 1))
    """
    figure_class = matplotlib_figure()
    maps = [of_sample(weights, sample, head, per_head=True) for weights in synthetic_maps(model, inputs)]
    length = maps[0].shape[-1]
    pixels = pixels_of(inputs, sample)
    rows, columns = patch_grid(model, pixels, length, "plot_synthetic_maps")
    prefix = length - rows * columns
    token = _token_of(query, rows, columns, prefix)
    groups = group_layers(layers, len(maps), COLUMNS)
    seen = [mean_of([maps[x].mean(dim=0) if token is None else maps[x][token] for x in group]) for group in groups]
    patches = [row[prefix:].reshape(rows, columns) for row in seen]
    titles = [name_group(group) for group in groups]
    if prefix:
        titles = [f"{title}, {100 * float(grid.sum()):.0f} %" for title, grid in zip(titles, patches, strict=True)]
    place = None if token is None or token < prefix else divmod(token - prefix, columns)
    who = "all tokens look" if token is None else "a patch looks" if place else f"token {token} looks"
    note = "Outlined: the tenth of the patches with the most weight."
    note += " Framed: the patch that looks." if place else ""
    note += " Percentages: what goes to patches at all." if prefix else ""
    return draw_beside_image(
        figure_class,
        f"Where {who} in the synthetic attention maps of {describe_model(model)}",
        pixels,
        [ImageColumn(title, {"": map}, [most_of(map)]) for title, map in zip(titles, patches, strict=True)],
        weight_colours(patches, _SHARE, lowest=min(float(map.min()) for map in patches)),
        "weight",
        note,
        "max",
        place,
    )


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
    is_text = len(places) == 1
    factors = "" if is_text else f" as factors along the axes of the {' × '.join(map(str, places))} grid,"
    pictures = {
        "synthetic_maps": (
            plot_synthetic_maps(model, inputs, tokens=example.tokens if is_text else None),
            f"The synthetic attention maps of {example.describe_layers(_MOST_PANELS)},{factors} mean over heads, for "
            f"an example of {example.shown.describe()}: rows look, columns are seen; yellow is much weight, dark "
            "blue is none.",
        )
    }
    grid = example.grid
    if grid is not None and tuple(places) == grid:
        middle = grid[0] // 2, grid[1] // 2
        has_prefix = len(example.shown.kept) > grid[0] * grid[1]
        share = "; titles say how much of it goes to patches at all" if has_prefix else ""
        pictures["synthetic_map_on_image"] = (
            plot_map_on_image(model, inputs, query=middle),
            f"Where the framed patch looks in the synthetic attention maps of {example.describe_layers(COLUMNS)}, "
            f"mean over heads, on the {grid[0]} × {grid[1]} patches of an image: yellow is much weight, dark blue is "
            f"little{share}.",
        )
    return pictures


register_pictures(SttConfig.name, _draw)

"""Learned masks, attention views and synthetic maps as pictures: functions that return a matplotlib `Figure`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .modeling.configuration_hf_lam import LocomtConfig, segment_kind
from .modeling.injection_hf_lam import ModalityTokens, _dense_padding_mask, injected_encoders, views_of
from .modeling.segments_hf_lam import has_modalities, has_token_types, span_length
from .modeling.views_hf_lam import View, parse_view
from .observing import evaluation_mode, modality_tokens_of, observing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

COLOURS = "RdBu_r"
WEIGHT_COLOURS = "viridis"
# Of nearly the same brightness everywhere, because on an image brightness is what the image shows.
WEIGHT_COLOURS_ON_IMAGE = "cool"
# A mask that is 1 all over would otherwise be stretched to full colours by rounding errors.
SMALLEST_HALF_RANGE = 1e-3

# What the pixels of a block pattern are, by their number, and the colours.
PATTERN = ("not seen", "seen", "query that sees nothing")
PATTERN_COLOURS = ("#eeeeee", "#3b6ea8", "#e8a33d")

# The axes of a grid, by how many there are.
AXES = {1: ("tokens",), 2: ("rows", "columns"), 3: ("steps", "rows", "columns")}


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
    mechanisms: Any = _encoder_with(model, "lam").hf_lam
    masks: dict[int, torch.Tensor] = {}

    def keep(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args[0] == "mask":
            masks[args[2]] = output.float().cpu()

    handle = mechanisms.register_forward_hook(keep)
    try:
        with torch.no_grad(), evaluation_mode(model):
            model(**inputs)
    finally:
        handle.remove()
    return [masks[index] for index in sorted(masks)]


def _encoder_with(model: nn.Module, mechanism: str) -> Any:
    """The one encoder of `model` that has a mechanism; a `ValueError` if there is none or more than one."""
    encoders = [base for base in injected_encoders(model) if getattr(base._hf_lam_configs, mechanism) is not None]
    if len(encoders) != 1:
        kind, config = {
            "lam": ("learnable attention masks", "LamConfig"),
            "locomt": ("attention views", "LocomtConfig"),
            "stt": ("synthesised attention", "SttConfig"),
        }[mechanism]
        raise ValueError(
            f"expected a model with {kind} in one encoder, {type(model).__name__} has them in {len(encoders)}. Use "
            f"hf_lam.convert or hf_lam.inject with {config}(...) first, or pass the encoder you mean."
        )
    return encoders[0]


def plot_masks(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    sample: int = 0,
    head: int | None = None,
    tokens: Sequence[str] | None = None,
) -> Figure:
    """Heat maps of the masks of one sample: one panel per layer, or a single one for a shared mask.

    White is 1, which leaves a score as it is; red strengthens it, blue weakens it or, below 0, turns it around. All
    panels have the same scale. Padding is cut off; of a fusion model, also the modalities that the sample does not
    have, and lines part the others.

    Args:
        model: a model with learnable attention masks.
        inputs: what the model is called with; `B` samples of `L` tokens.
        sample: which of the `B`.
        head: with `per_head` masks, which head; `None` is the mean over heads.
        tokens: `L` names for the axes (padding included), for example `tokenizer.convert_ids_to_tokens(...)`; those of
            the modalities unless given.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no masks, or there is no such sample, head or number of tokens.
    """
    figure_class = _matplotlib_figure()
    base = _encoder_with(model, "lam")
    with modality_tokens_of(base) as fused:
        masks = [_of_sample(mask, sample, head) for mask in learned_masks(model, inputs)]
    length = masks[0].shape[-1]
    if tokens is not None and len(tokens) != length:
        raise ValueError(f"tokens must name all {length} tokens of the sequence, got {len(tokens)}.")
    kept = _present(inputs, sample, base.config.modalities, fused[0]) if fused else _unpadded(inputs, sample, length)
    masks = [mask[kept][:, kept] for mask in masks]
    counts = [int(part.sum()) for part in kept.split(list(fused[0].lengths))] if fused else []
    modalities = {name: n for name, n in zip(base.config.modalities, counts, strict=True) if n} if fused else {}
    names = None if tokens is None else [name for name, keep in zip(tokens, kept.tolist(), strict=True) if keep]

    columns = min(len(masks), 4)
    rows = -(-len(masks) // columns)
    figure = figure_class(figsize=(2.6 * columns + 0.9, 2.6 * rows + 0.5), layout="constrained", dpi=150)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    colours = _colours(masks)
    for index, (panel, mask) in enumerate(zip(panels, masks, strict=False)):
        panel.imshow(mask.numpy(), cmap=colours.cmap, norm=colours.norm, interpolation="nearest")
        panel.set_title(_title(index, len(masks)), fontsize=9)
        if modalities and names is None:
            _name_segments(panel, list(modalities), list(modalities.values()), "black")
        else:
            _name_axes(panel, names)
    for panel in panels[len(masks) :]:
        panel.remove()
    figure.supxlabel("key token", fontsize=9)
    figure.supylabel("query token", fontsize=9)
    figure.colorbar(colours, ax=panels[: len(masks)], label="mask M", shrink=0.8, pad=0.01)
    return figure


def plot_mask_on_image(
    model: nn.Module, inputs: Mapping[str, Any], *, sample: int = 0, head: int | None = None, query: int | None = None
) -> Figure:
    """Where on the image the masks strengthen attention, and where they weaken it.

    The image, and beside it for each mask its value at every patch (as a key), laid over the image.

    Args:
        model: a model with learnable attention masks on square image patches, such as a ViT.
        inputs: what the model is called with; its `pixel_values` are `(B, C, height, width)`.
        sample: which of the `B`.
        head: with `per_head` masks, which head; `None` is the mean over heads.
        query: the token that attends: 0 is `[CLS]`; `None` is the mean over all tokens.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the tokens are not the patches of one image, or there is no such sample, head or query.
    """
    figure_class = _matplotlib_figure()
    masks = [_of_sample(mask, sample, head) for mask in learned_masks(model, inputs)]
    pixels = inputs["pixel_values"][sample].detach().float().cpu()
    grid = _patch_grid(model, pixels, masks[0].shape[-1], "plot_masks")
    if query is not None and not 0 <= query < masks[0].shape[-1]:
        raise ValueError(f"query must be a token from 0 to {masks[0].shape[-1] - 1}, got {query}.")
    rows = [mask.mean(dim=0) if query is None else mask[query] for mask in masks]
    patches = [row[-grid[0] * grid[1] :].reshape(grid) for row in rows]

    titles = [_title(index, len(patches)) for index in range(len(patches))]
    figure, _ = _draw_on_image(figure_class, pixels, patches, titles, _colours(patches), "mask M")
    return figure


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

    def whole(call: Any, value: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        of_pass = call.forward_call
        asked, of_pass.output_attentions = of_pass.output_attentions, True
        try:
            _, weights = call._attend_synthetic(value, padding, dropout=0.0)
        finally:
            of_pass.output_attentions = asked
        return weights.float().cpu()

    return _synthesised(model, inputs, whole)


def synthetic_axes(model: nn.Module, inputs: Mapping[str, Any]) -> list[list[torch.Tensor]]:
    """What the synthetic maps are products of: the matrix of every axis of the grid.

    Args and errors are those of [`synthetic_maps`].

    Returns:
        One list per layer, with one tensor per axis, `(B, H, p + n_a, n_a)`: first the rows of the `p` prefix tokens,
        then one for every place on the axis. Rows sum to one. Places with nothing but padding get no weight.
    """

    def axes(call: Any, value: torch.Tensor, padding: torch.Tensor | None) -> list[torch.Tensor]:
        weights, _ = call.synthesize(padding).weights()
        return [axis.float().cpu().expand(value.shape[0], -1, -1, -1) for axis in weights]

    return _synthesised(model, inputs, axes)


def _synthesised(model: nn.Module, inputs: Mapping[str, Any], take: Callable[..., Any]) -> list[Any]:
    """What `take` makes of the call, the values and the padding of every layer."""
    base = _encoder_with(model, "stt")
    taken: dict[int, Any] = {}

    class Taking:
        """Stands in for the call of one attention layer."""

        def __init__(self, call: Any) -> None:
            self.call = call

        def attend(
            self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, *rest: Any
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            taken[self.call.layer_index] = take(self.call, value, _dense_padding_mask(mask, query, key))
            return self.call.attend(query, key, value, mask, *rest)

    with torch.no_grad(), evaluation_mode(model), observing(base, Taking):
        model(**inputs)
    return [taken[index] for index in sorted(taken)]


def plot_synthetic_maps(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    sample: int = 0,
    head: int | None = None,
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
        tokens: `L` names for a single axis (padding and prefix included), for example
            `tokenizer.convert_ids_to_tokens(...)`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no synthesised attention, or there is no such sample, head or number of tokens.
    """
    figure_class = _matplotlib_figure()
    layers = [
        [_of_sample(axis, sample, head, per_head=True) for axis in axes] for axes in synthetic_axes(model, inputs)
    ]
    number = len(layers[0])
    prefix = layers[0][0].shape[0] - layers[0][0].shape[1]
    names = None
    if tokens is not None and number > 1:
        raise ValueError(
            f"tokens name the places of a single axis, but this grid has {number} axes; leave tokens out."
        )
    if number == 1:
        length = layers[0][0].shape[0]
        if tokens is not None and len(tokens) != length:
            raise ValueError(f"tokens must name all {length} tokens of the sequence, got {len(tokens)}.")
        kept = _unpadded(inputs, sample, length)
        layers = [[axis[kept][:, kept[prefix:]]] for (axis,) in layers]
        prefix = int(kept[:prefix].sum())
        if tokens is not None:
            names = [name for name, keep in zip(tokens, kept.tolist(), strict=True) if keep]

    columns = min(len(layers), 4 if number == 1 else 6)
    blocks = -(-len(layers) // columns)
    size = 2.6 if number == 1 else 1.9
    figure = figure_class(figsize=(size * columns + 0.9, size * blocks * number + 0.5), layout="constrained", dpi=150)
    panels = figure.subplots(blocks * number, columns, squeeze=False)
    colours = _weight_colours([axis for axes in layers for axis in axes], WEIGHT_COLOURS)
    axis_names = AXES.get(number) or tuple(f"axis {axis}" for axis in range(number))
    for index, axes in enumerate(layers):
        for axis, weights in enumerate(axes):
            panel = panels[index // columns * number + axis, index % columns]
            panel.imshow(weights.numpy(), cmap=colours.cmap, norm=colours.norm, interpolation="nearest")
            panel.set_title(f"layer {index}" if number == 1 else f"layer {index}, {axis_names[axis]}", fontsize=9)
            _name_places(panel, weights.shape[1], prefix, names)
    unused = list(panels[-number:, len(layers) - (blocks - 1) * columns :].flat)
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
        panel.set_xticks(range(places), labels=list(names[prefix:]), rotation=90, fontsize=6)
        panel.set_yticks(range(prefix + places), labels=list(names), fontsize=6)
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

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the tokens are not the patches of one image, or there is no such sample, head or query.
    """
    figure_class = _matplotlib_figure()
    maps = [_of_sample(weights, sample, head, per_head=True) for weights in synthetic_maps(model, inputs)]
    length = maps[0].shape[-1]
    pixels = inputs["pixel_values"][sample].detach().float().cpu()
    rows, columns = _patch_grid(model, pixels, length, "plot_synthetic_maps")
    prefix = length - rows * columns
    token = _token_of(query, rows, columns, prefix)
    seen = [weights.mean(dim=0) if token is None else weights[token] for weights in maps]
    patches = [row[prefix:].reshape(rows, columns) for row in seen]
    titles = [f"layer {index}" for index in range(len(patches))]
    if prefix:
        titles = [f"{title}, {100 * float(grid.sum()):.0f} %" for title, grid in zip(titles, patches, strict=True)]
    colours = _weight_colours(patches, WEIGHT_COLOURS_ON_IMAGE)
    figure, image = _draw_on_image(figure_class, pixels, patches, titles, colours, "weight")
    if token is not None and token >= prefix:
        from matplotlib.patches import Rectangle

        down, across = divmod(token - prefix, columns)
        height, width = pixels.shape[1] / rows, pixels.shape[2] / columns
        corner = (across * width - 0.5, down * height - 0.5)
        image.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="red", linewidth=1.5))
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


def plot_views(model_or_config: nn.Module | LocomtConfig) -> Figure:
    """The view of every head, layers × heads: one colour for each view, which the legend names.

    Args:
        model_or_config: a model with attention views, or its `LocomtConfig`, as `config.json` stores it.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no views, or the configuration has a preset in place of a table.
    """
    figure_class = _matplotlib_figure()
    from matplotlib.patches import Patch

    config, _ = _views_in(model_or_config)
    names = _distinct_views(config)
    colours = _view_colours(len(names))
    numbers = {view: number for number, view in enumerate(names)}
    table = [[numbers[view] for view in row] for row in _parsed(config)]
    layers, heads = len(table), len(table[0])

    width = 0.32 * heads + 1.6 + 0.08 * max(map(len, names.values()))
    height = max(0.32 * layers + 0.9, 0.2 * len(names) + 0.7, 1.6)
    figure = figure_class(figsize=(width, height), layout="constrained", dpi=150)
    panel = figure.subplots()
    panel.imshow(torch.tensor(table).numpy(), cmap=colours, vmin=-0.5, vmax=len(names) - 0.5, interpolation="nearest")
    panel.set_xticks([h - 0.5 for h in range(1, heads)], minor=True)
    panel.set_yticks([n - 0.5 for n in range(1, layers)], minor=True)
    panel.grid(which="minor", color="white", linewidth=1.5)
    panel.tick_params(which="minor", length=0)
    panel.tick_params(labelsize=7)
    panel.set_xticks(range(0, heads, 1 + heads // 16))
    panel.set_yticks(range(0, layers, 1 + layers // 16))
    panel.set_xlabel("head", fontsize=9)
    panel.set_ylabel("layer", fontsize=9)
    patches = [Patch(color=colours(number), label=name) for number, name in enumerate(names.values())]
    figure.legend(handles=patches, loc="outside right upper", fontsize=8, title="view", title_fontsize=8)
    return figure


def plot_view_blocks(model_or_config: nn.Module | LocomtConfig, lengths: Sequence[int] | None = None) -> Figure:
    """Which tokens see which under every view that a model has: one panel for each, rows are queries, columns keys.

    Tokens are in the order of their segments, which for rectangles is not that of the sequence.

    Args:
        model_or_config: a model with attention views, or its `LocomtConfig`, as `config.json` stores it.
        lengths: tokens of each segment, where that is not known: with token types and modalities, which differ from
            sample to sample or batch to batch, and for a configuration with frames.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no views, the configuration has a preset in place of a table, or `lengths` are
            missing or do not fit.
    """
    figure_class = _matplotlib_figure()
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    config, known = _views_in(model_or_config)
    sizes = _checked_lengths(config, known, lengths)
    views = _distinct_views(config)
    counts = {view: sum(row.count(view) for row in _parsed(config)) for view in views}
    patterns = [_pattern(view, sizes) for view in views]

    columns = min(len(views), 4)
    lines = -(-len(views) // columns)
    figure = figure_class(figsize=(2.9 * columns + 1.8, 2.9 * lines + 0.4), layout="constrained", dpi=150)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel, (view, name), pattern in zip(panels, views.items(), patterns, strict=False):
        panel.imshow(
            pattern.numpy(), cmap=ListedColormap(PATTERN_COLOURS), vmin=-0.5, vmax=2.5, interpolation="nearest"
        )
        panel.set_title(f"{name}\n{counts[view]} head{'s' if counts[view] > 1 else ''}", fontsize=8)
        _name_segments(panel, config.names, sizes)
    for panel in panels[len(views) :]:
        panel.remove()
    figure.supxlabel("keys", fontsize=9)
    figure.supylabel("queries", fontsize=9)
    present = sorted({int(number) for pattern in patterns for number in pattern.unique()})
    patches = [Patch(facecolor=PATTERN_COLOURS[n], edgecolor="grey", label=PATTERN[n]) for n in present]
    figure.legend(handles=patches, loc="outside right upper", fontsize=8)
    return figure


def _views_in(model_or_config: nn.Module | LocomtConfig) -> tuple[LocomtConfig, tuple[int, ...] | None]:
    """The views, and the tokens of each segment where they are known."""
    if isinstance(model_or_config, LocomtConfig):
        config = model_or_config
        if not isinstance(config.segments, list) or isinstance(config.views, str):
            raise ValueError(
                f"LocomtConfig(segments={config.segments!r}, views={config.views!r}) has no list of segments "
                "or no table of views yet; pass a model that was made with it."
            )
        return config, _lengths_in(config)
    views = views_of(_encoder_with(model_or_config, "locomt"))
    differs = has_token_types(views.config) or has_modalities(views.config)
    return views.config, None if differs else views.lengths


def _lengths_in(config: LocomtConfig) -> tuple[int, ...] | None:
    """Tokens of each segment, bottleneck included, or None if the configuration alone does not say."""
    lengths = []
    for (_, extent), everywhere in zip(config.segments, config.is_global, strict=True):
        kind = segment_kind(extent)
        if kind == "length":
            length = span_length(extent)
        elif kind == "rectangle":
            length = extent[kind][2] * extent[kind][3]
        else:
            return None
        lengths.append(length if everywhere else length + config.bottleneck_tokens)
    return tuple(lengths)


def _checked_lengths(
    config: LocomtConfig, known: tuple[int, ...] | None, given: Sequence[int] | None
) -> tuple[int, ...]:
    if given is None:
        if known is None:
            raise ValueError(
                f"how many tokens the segments {config.names} have is not known here; give lengths, one for each."
            )
        return known
    if known is not None:
        raise ValueError(
            f"lengths={list(given)} was given, but the segments {config.names} have {list(known)} tokens."
        )
    if len(given) != len(config.names) or any(length < 0 for length in given) or sum(given) < 1:
        raise ValueError(
            f"lengths must be one number of tokens for each of the segments {config.names}, got {list(given)}."
        )
    return tuple(given)


def _parsed(config: LocomtConfig) -> list[list[View]]:
    """The table of views; two names of the same view are one."""
    return [[parse_view(view, config.names, config.is_global) for view in row] for row in config.views]


def _distinct_views(config: LocomtConfig) -> dict[View, str]:
    """Every view once, with its name, in the order in which they come."""
    found: dict[View, str] = {}
    for row, names in zip(_parsed(config), config.views, strict=True):
        for view, name in zip(row, names, strict=True):
            found.setdefault(view, name)
    return found


def _view_colours(number: int) -> Colormap:
    """As many colours as there are views; from 21 on neighbouring ones are hard to tell apart."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    if number > 20:
        return colormaps["turbo"].resampled(number)
    listed = colormaps["tab10" if number <= 10 else "tab20"]
    return ListedColormap([listed(index) for index in range(number)])


def _pattern(view: View, lengths: Sequence[int]) -> torch.Tensor:
    """`(L, L)` of indices in `PATTERN`."""
    segments = len(lengths)
    table = torch.zeros(segments, segments, dtype=torch.uint8)
    for i, j in view:
        table[i, j] = 1
    sizes = torch.tensor(lengths)
    # A segment without tokens is no key either.
    table[(table * sizes).sum(1) == 0] = 2
    return table.repeat_interleave(sizes, 0).repeat_interleave(sizes, 1)


def _name_segments(panel: Axes, names: Sequence[str], lengths: Sequence[int], colour: str = "white") -> None:
    """Names at the middle of the segments, lines between them."""
    stops = list(accumulate(lengths))
    middles = [stop - length / 2 - 0.5 for stop, length in zip(stops, lengths, strict=True)]
    labels = [f"{name} ({length})" for name, length in zip(names, lengths, strict=True)]
    panel.set_xticks(middles, labels=labels, rotation=90, fontsize=6)
    panel.set_yticks(middles, labels=labels, fontsize=6)
    panel.tick_params(length=0)
    for stop in stops[:-1]:
        panel.axhline(stop - 0.5, color=colour, linewidth=1)
        panel.axvline(stop - 0.5, color=colour, linewidth=1)


def _matplotlib_figure() -> type[Figure]:
    """matplotlib's `Figure`, without pyplot: nothing global is touched and no display is needed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib. Run `pip install "hf-lam[viz]"`.') from error
    return Figure


def _of_sample(maps: torch.Tensor, sample: int, head: int | None, per_head: bool = False) -> torch.Tensor:
    """`(B, 1 or H, R, C)` to the `(R, C)` of one sample and head, or of the mean over heads.

    per_head: a single head is that of the host, and not one mask for all of its heads.
    """
    batch, heads = maps.shape[:2]
    if not 0 <= sample < batch:
        raise ValueError(f"sample must be from 0 to {batch - 1} (the inputs hold {batch}), got {sample}.")
    if head is None:
        return maps[sample].mean(dim=0)
    if heads == 1 and not per_head:
        raise ValueError(f"head={head} was asked for, but the masks are the same for all heads; leave head out.")
    if not 0 <= head < heads:
        raise ValueError(f"head must be from 0 to {heads - 1}, got {head}.")
    return maps[sample, head]


def _unpadded(inputs: Mapping[str, Any], sample: int, length: int) -> torch.Tensor:
    """Which of the `L` tokens are not padding, `(L,)` of bool."""
    attention_mask = inputs.get("attention_mask")
    if attention_mask is None or attention_mask.dim() != 2 or attention_mask.shape[1] != length:
        return torch.ones(length, dtype=torch.bool)
    return attention_mask[sample].bool().cpu()


def _present(
    inputs: Mapping[str, Any], sample: int, modalities: Sequence[str], tokens: ModalityTokens
) -> torch.Tensor:
    """Which of the `L` tokens of a fusion model are not padding, of modalities that the sample has, `(L,)` of bool."""
    assert tokens.is_present is not None
    present = tokens.is_present[sample].cpu()
    kept = {name: there.expand(n) for name, n, there in zip(modalities, tokens.lengths, present, strict=True)}
    if kept.get("text") is not None and inputs.get("attention_mask") is not None:
        kept["text"] = kept["text"] & inputs["attention_mask"][sample].bool().cpu()
    return torch.cat(list(kept.values()))


def _patch_grid(model: nn.Module, pixels: torch.Tensor, length: int, instead: str) -> tuple[int, int]:
    """Patches down and across. The `L` tokens are those patches, and before them at most a few prefix tokens.

    instead: which function draws other inputs.
    """
    patch = getattr(getattr(model, "config", None), "patch_size", None)
    if not isinstance(patch, int) or pixels.dim() != 3:
        raise ValueError(
            f"{type(model).__name__} does not read images in square patches (config.patch_size={patch!r}, "
            f"{pixels.dim()} dimensions of pixel values a sample instead of 3); use {instead}."
        )
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    if not rows * columns <= length <= rows * columns + 5:
        raise ValueError(
            f"{length} tokens are not the {rows} × {columns} patches of the image and a few prefix tokens; use "
            f"{instead}."
        )
    return rows, columns


def _colours(masks: Sequence[torch.Tensor]) -> ScalarMappable:
    """One scale for all of them, with its middle at 1."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import CenteredNorm

    half_range = max(SMALLEST_HALF_RANGE, *(float((mask - 1).abs().max()) for mask in masks))
    return ScalarMappable(CenteredNorm(vcenter=1, halfrange=half_range), COLOURS)


def _weight_colours(weights: Sequence[torch.Tensor], colours: str) -> ScalarMappable:
    """One scale for all of them, from 0 to the largest."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(0, max(float(weight.max()) for weight in weights)), colours)


def _draw_on_image(
    figure_class: type[Figure],
    pixels: torch.Tensor,
    patches: Sequence[torch.Tensor],
    titles: Sequence[str],
    colours: ScalarMappable,
    label: str,
) -> tuple[Figure, Axes]:
    """The image, and beside it each of the `patches`, `(rows, columns)`, laid over it; the panel of the image too."""
    columns = min(len(patches) + 1, 5)
    lines = -(-(len(patches) + 1) // columns)
    figure = figure_class(figsize=(1.9 * columns + 0.8, 2.1 * lines), layout="constrained", dpi=150)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel in panels:
        panel.set_axis_off()
    grey = _brightness(pixels)
    panels[0].imshow(grey.numpy(), cmap="gray", vmin=0, vmax=1)
    panels[0].set_title("input", fontsize=9)
    for panel, patch_values, title in zip(panels[1:], patches, titles, strict=False):
        rgb = torch.from_numpy(colours.to_rgba(_enlarged(patch_values, grey.shape).numpy())[..., :3])
        # The colour says what the value is, its brightness what the image shows; dark places keep half of theirs.
        panel.imshow((rgb * (0.5 + 0.5 * grey.unsqueeze(-1))).numpy())
        panel.set_title(title, fontsize=9)
    figure.colorbar(colours, ax=panels, label=label, shrink=0.8, pad=0.01)
    return figure, panels[0]


def _brightness(pixels: torch.Tensor) -> torch.Tensor:
    """`(C, height, width)` in any range to `(height, width)` from 0 to 1."""
    grey = pixels.mean(dim=0)
    return (grey - grey.min()) / (grey.max() - grey.min()).clamp(min=1e-12)


def _enlarged(patches: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`(rows, columns)` to `(height, width)`, every patch in one colour."""
    return nn.functional.interpolate(patches[None, None], size=tuple(size), mode="nearest")[0, 0]


def _title(index: int, masks: int) -> str:
    return "all layers" if masks == 1 else f"layer {index}"


def _name_axes(panel: Axes, names: Sequence[str] | None) -> None:
    if names is None:
        panel.tick_params(labelsize=7)
        panel.locator_params(integer=True, nbins=6)
        return
    panel.set_xticks(range(len(names)), labels=list(names), rotation=90, fontsize=6)
    panel.set_yticks(range(len(names)), labels=list(names), fontsize=6)

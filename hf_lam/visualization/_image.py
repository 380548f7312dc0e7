"""Values of the patches of an image: the image in its colours, and the values in panels of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from ._drawing import WIDTH, add_note, titled_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

# Panels beside each other.
COLUMNS = 4
# Of the patches of a panel, those that are outlined.
OUTLINED = 0.1
# What hardly differs has no patches that stand out.
_LEAST_SPREAD = 0.02
# Told apart by everybody on any image, because of the black around them, and from each other by the dashes.
_COLOURS = ("#ffb000", "#ffffff")
_DASHES = ("solid", (0, (2.2, 1.6)))
# How images are normalised, as (mean, standard deviation) by channel.
_NORMS = (
    (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
    (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
)


class ImageColumn(NamedTuple):
    """The drawings of one layer, below each other.

    title: title of the column.
    maps: values `(rows, columns)` of the patches, by name; the name may be empty.
    outlines: patches that are outlined on the image, `(rows, columns)` of bool; the second of two is dashed.
    """

    title: str
    maps: Mapping[str, Tensor]
    outlines: Sequence[Tensor]


def most_of(values: Tensor) -> Tensor:
    """The tenth of the patches with the largest values, `(rows, columns)` of bool; none where all are alike."""
    flat = values.flatten()
    if float(flat.max() - flat.min()) <= _LEAST_SPREAD * float(flat.abs().max()):
        return torch.zeros_like(values, dtype=torch.bool)
    count = max(1, round(OUTLINED * len(flat)))
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[:count]] = True
    return chosen.reshape(values.shape)


def draw_beside_image(
    figure_class: type[Figure],
    title: str,
    pixels: Tensor,
    columns: Sequence[ImageColumn],
    colours: ScalarMappable,
    label: str,
    note: str,
    extend: str = "neither",
    frame: tuple[int, int] | None = None,
) -> Figure:
    """Draw the image with outlines for every column, and below it the column's maps.

    Args:
        pixels: the image, `(C, height, width)`.
        label: label of the colours.
        note: text below everything.
        frame: (row, column) of a patch that is framed.
    """
    names = list(columns[0].maps)
    across = min(max(len(columns), 2), COLUMNS)
    blocks, high = -(-len(columns) // across), 1 + len(names)
    side = (WIDTH - 1.1) / COLUMNS
    shape = pixels.shape[1] / pixels.shape[2]
    figure = titled_figure(
        figure_class, side * across + 1.1, (side * min(shape, 2) + 0.16) * high * blocks + 0.4, title
    )
    panels = figure.subplots(high * blocks, across, squeeze=False)
    image = in_colour(pixels).permute(1, 2, 0).numpy()
    extent = (-0.5, pixels.shape[2] - 0.5, pixels.shape[1] - 0.5, -0.5)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    shown: list[Axes] = []
    for index in range(blocks * across):
        block, place = divmod(index, across)
        its = [panels[block * high + line, place] for line in range(high)]
        if index >= len(columns):
            for panel in its:
                panel.remove()
            continue
        shown += its
        column = columns[index]
        its[0].imshow(image)
        its[0].set_title(column.title, fontsize=9)
        grid = next(iter(column.maps.values())).shape
        for number, outline in enumerate(column.outlines):
            _outline(its[0], outline, pixels, number)
        if frame is not None:
            _frame(its[0], frame, grid, pixels)
        for panel, (name, values) in zip(its[1:], column.maps.items(), strict=True):
            norm: Any = colours.norm
            panel.imshow(values.numpy(), cmap=colours.cmap, norm=norm, interpolation="none", extent=extent)
            if frame is not None:
                _frame(panel, frame, grid, pixels)
            if not place:
                panel.set_ylabel(name, fontsize=9)
    bar = figure.colorbar(colours, ax=shown, shrink=0.6, pad=0.01, extend=extend)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=7)
    add_note(figure, note)
    return figure


def in_colour(pixels: Tensor) -> Tensor:
    """An image as it was before it was normalised, as far as its values tell: `(3, height, width)` from 0 to 1."""
    if len(pixels) != 3:
        pixels = pixels.mean(dim=0, keepdim=True).expand(3, -1, -1)
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and high <= 1:
        return pixels
    for mean, deviation in _NORMS:
        undone = pixels * torch.tensor(deviation)[:, None, None] + torch.tensor(mean)[:, None, None]
        if float(undone.min()) >= -0.01 and float(undone.max()) <= 1.01:
            return undone.clamp(0, 1)
    return (pixels - low) / max(high - low, 1e-12)


def _outline(panel: Axes, chosen: Tensor, pixels: Tensor, number: int) -> None:
    """A line around patches that are chosen."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    height, width = pixels.shape[1] / chosen.shape[0], pixels.shape[2] / chosen.shape[1]
    inside = torch.nn.functional.pad(chosen, (1, 1, 1, 1))
    lines = []
    for row, column in (inside[1:, 1:-1] != inside[:-1, 1:-1]).nonzero().tolist():
        y = row * height - 0.5
        lines.append([(column * width - 0.5, y), ((column + 1) * width - 0.5, y)])
    for row, column in (inside[1:-1, 1:] != inside[1:-1, :-1]).nonzero().tolist():
        x = column * width - 0.5
        lines.append([(x, row * height - 0.5), (x, (row + 1) * height - 0.5)])
    halo = [withStroke(linewidth=2.6, foreground="black")]
    style: Any = {"colors": _COLOURS[number], "linestyles": [_DASHES[number]], "path_effects": halo}
    panel.add_collection(LineCollection(lines, linewidths=1.3, **style), autolim=False)


def _frame(panel: Axes, place: tuple[int, int], grid: Sequence[int], pixels: Tensor) -> None:
    """A frame around the patch at (row, column) of the grid."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    height, width = pixels.shape[1] / grid[0], pixels.shape[2] / grid[1]
    corner = (place[1] * width - 0.5, place[0] * height - 0.5)
    halo = [withStroke(linewidth=3.4, foreground="white")]
    panel.add_patch(
        Rectangle(corner, width, height, fill=False, edgecolor="#d1105a", linewidth=1.8, path_effects=halo)
    )

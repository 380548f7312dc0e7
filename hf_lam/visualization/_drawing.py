"""The parts that pictures are made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

DIVERGING_COLOURS = "RdBu_r"
WEIGHT_COLOURS = "viridis"
# Of nearly the same brightness everywhere, because on an image brightness is what the image shows.
WEIGHT_COLOURS_ON_IMAGE = "cool"
# What hardly differs would otherwise be stretched to full colours by rounding errors.
SMALLEST_HALF_RANGE = 1e-3

# Inches a side of a panel: the least, what a name takes, and the most.
_PANEL, _NAME, _LARGEST_PANEL = 2.6, 0.1, 5.0
# Names along one axis that a panel has room for.
_MOST_NAMES = 50
# More cells than a panel has pixels: neighbours are averaged, where "nearest" would drop most of them.
_MOST_CELLS = 400


def matplotlib_figure() -> type[Figure]:
    """The class of all figures; an `ImportError` that says what to install without matplotlib."""
    try:
        from ._figure import NotebookFigure
    except ImportError as error:
        raise ImportError('pictures need matplotlib. Run `pip install "hf-lam[viz]"`.') from error
    return NotebookFigure


def diverging_colours(values: Sequence[torch.Tensor], centre: float, share: float = 1.0) -> ScalarMappable:
    """One scale for all of them, with its middle, white, at `centre`; it ends where this share of the values does."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import CenteredNorm

    half_range = max(SMALLEST_HALF_RANGE, _end([(value - centre).abs() for value in values], share))
    return ScalarMappable(CenteredNorm(vcenter=centre, halfrange=half_range), DIVERGING_COLOURS)


def weight_colours(weights: Sequence[torch.Tensor], colours: str, share: float = 1.0) -> ScalarMappable:
    """One scale for all of them, from 0 to where this share of the weights ends."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(0, _end(weights, share)), colours)


def _end(values: Sequence[torch.Tensor], share: float) -> float:
    """The value, at least 0, that this share of all of them does not exceed."""
    ordered = torch.cat([value.flatten() for value in values]).sort().values
    last = len(ordered) - 1
    end = ordered[round(share * last)]
    return float(end if end > 0 else ordered[last])


def panel_size(names: Sequence[str] | None) -> float:
    """Inches a side of a panel with these names along its axes."""
    return _PANEL if names is None else min(max(_PANEL, _NAME * len(names)), _LARGEST_PANEL)


def name_step(names: int) -> int:
    """Every how many of the names a panel has room for."""
    return 1 + (names - 1) // _MOST_NAMES


def draw_matrix(panel: Axes, matrix: torch.Tensor, colours: ScalarMappable) -> None:
    """A heat map."""
    interpolation = "nearest" if max(matrix.shape) <= _MOST_CELLS else "antialiased"
    norm: Any = colours.norm
    panel.imshow(matrix.numpy(), cmap=colours.cmap, norm=norm, interpolation=interpolation)


def name_tokens(panel: Axes, names: Sequence[str] | None, modalities: dict[str, int]) -> None:
    """Names of tokens along both axes; without those the modalities, or numbers."""
    if names is not None:
        shown = range(0, len(names), name_step(len(names)))
        labels = [names[place] for place in shown]
        panel.set_xticks(shown, labels=labels, rotation=90, fontsize=6)
        panel.set_yticks(shown, labels=labels, fontsize=6)
    elif modalities:
        name_segments(panel, list(modalities), list(modalities.values()), "black")
    else:
        panel.tick_params(labelsize=7)
        panel.locator_params(integer=True, nbins=6)


def name_segments(panel: Axes, names: Sequence[str], lengths: Sequence[int], colour: str = "white") -> None:
    """Names at the middle of the segments, lines between them."""
    stops = list(accumulate(lengths))
    # Segments without tokens may share a place with each other.
    found: dict[tuple[float, int], list[str]] = {}
    for name, stop, length in zip(names, stops, lengths, strict=True):
        found.setdefault((stop - length / 2 - 0.5, length), []).append(name)
    middles = [middle for middle, _ in found]
    labels = [f"{', '.join(together)} ({length})" for (_, length), together in found.items()]
    panel.set_xticks(middles, labels=labels, rotation=90, fontsize=6)
    panel.set_yticks(middles, labels=labels, fontsize=6)
    panel.tick_params(length=0)
    for stop in stops[:-1]:
        panel.axhline(stop - 0.5, color=colour, linewidth=1)
        panel.axvline(stop - 0.5, color=colour, linewidth=1)


def draw_on_image(
    figure_class: type[Figure],
    pixels: torch.Tensor,
    patches: Sequence[torch.Tensor | None],
    titles: Sequence[str],
    colours: ScalarMappable,
    label: str,
    columns: int = 5,
) -> tuple[Figure, Axes]:
    """The image, and beside it each of the `patches`, `(rows, columns)`, laid over it; the panel of the image too.

    patches: None leaves a panel empty.
    columns: the most panels in a line.
    """
    columns = min(len(patches) + 1, columns)
    lines = -(-(len(patches) + 1) // columns)
    figure = figure_class(figsize=(1.9 * columns + 0.8, 2.1 * lines + 0.2), layout="constrained", dpi=150)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel in panels:
        panel.set_axis_off()
    grey = _brightness(pixels)
    panels[0].imshow(grey.numpy(), cmap="gray", vmin=0, vmax=1)
    panels[0].set_title("input", fontsize=9)
    for panel, patch_values, title in zip(panels[1:], patches, titles, strict=False):
        if patch_values is None:
            continue
        rgb = torch.from_numpy(colours.to_rgba(_enlarged(patch_values, grey.shape).numpy())[..., :3])
        # The colour says what the value is, its brightness what the image shows; dark places keep half of theirs.
        panel.imshow((rgb * (0.5 + 0.5 * grey.unsqueeze(-1))).numpy())
        panel.set_title(title, fontsize=9)
    figure.colorbar(colours, ax=panels, label=label, shrink=0.8, pad=0.01)
    return figure, panels[0]


def frame_patch(image: Axes, place: tuple[int, int], grid: tuple[int, int], pixels: torch.Tensor) -> None:
    """A frame around the patch at (row, column) of the grid."""
    from matplotlib.patches import Rectangle

    height, width = pixels.shape[1] / grid[0], pixels.shape[2] / grid[1]
    corner = (place[1] * width - 0.5, place[0] * height - 0.5)
    image.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="red", linewidth=1.5))


def _brightness(pixels: torch.Tensor) -> torch.Tensor:
    """`(C, height, width)` in any range to `(height, width)` from 0 to 1."""
    grey = pixels.mean(dim=0)
    return (grey - grey.min()) / (grey.max() - grey.min()).clamp(min=1e-12)


def _enlarged(patches: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`(rows, columns)` to `(height, width)`, every patch in one colour."""
    return nn.functional.interpolate(patches[None, None], size=tuple(size), mode="nearest")[0, 0]

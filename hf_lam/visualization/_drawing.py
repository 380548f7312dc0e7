"""The parts that pictures are made of."""

from __future__ import annotations

import math
import textwrap
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
# What hardly differs would otherwise be stretched to full colours by rounding errors.
SMALLEST_HALF_RANGE = 1e-3

# Inches across: a card shows pictures 900 pixels wide, so letters of 7 points are 10 pixels high there.
WIDTH = 9.0
DOTS_PER_INCH = 150
# A side of a panel with a matrix, three of which fit beside each other, and of one that is alone.
PANEL, LONE_PANEL = 2.6, 4.4
NAME_SIZE = 6.5
# Inches along an axis that the name of a token takes.
_NAME = 1.15 * NAME_SIZE / 72
_TITLE_SIZE = 10
# Inches of a letter and of a line of the title.
_TITLE_LETTER, _TITLE_LINE = 0.6 * _TITLE_SIZE / 72, 1.35 * _TITLE_SIZE / 72
# Cells along a side of a panel that can be told apart at that width; of more, neighbours become their mean.
MOST_CELLS = 72


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


def weight_colours(weights: Sequence[torch.Tensor], share: float = 1.0, lowest: float = 0.0) -> ScalarMappable:
    """One scale for all of them, from `lowest` to where this share of the weights ends."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(lowest, max(_end(weights, share), lowest + 1e-6)), WEIGHT_COLOURS)


def _end(values: Sequence[torch.Tensor], share: float) -> float:
    """The value, at least 0, that this share of all of them does not exceed."""
    ordered = torch.cat([value.flatten() for value in values]).sort().values
    last = len(ordered) - 1
    end = ordered[round(share * last)]
    return float(end if end > 0 else ordered[last])


def titled_figure(figure_class: type[Figure], width: float, height: float, title: str) -> Figure:
    """A figure of so many inches, and as much more as the title above takes."""
    lines = textwrap.wrap(title, max(int((width - 0.1) / _TITLE_LETTER), 12))
    height += _TITLE_LINE * len(lines)
    figure = figure_class(figsize=(width, height), layout="constrained", dpi=DOTS_PER_INCH)
    # A dollar in a name begins no formula.
    figure.suptitle(
        "\n".join(lines), x=0.05 / width, ha="left", fontsize=_TITLE_SIZE, fontweight="bold", parse_math=False
    )
    return figure


def add_note(figure: Figure, note: str) -> None:
    """Add a note to a picture, in small letters below it."""
    width = figure.get_figwidth()
    lines = textwrap.wrap(note, int(width / (0.52 * 8 / 72)))
    figure.supxlabel("\n".join(lines), x=0.05 / width, ha="left", fontsize=8, color="#444444", parse_math=False)


def columns_of(panels: int) -> int:
    """Choose how many panels with matrices stand beside each other."""
    return {1: 1, 2: 2, 4: 2}.get(panels, 3)


def panel_side(columns: int) -> float:
    """Inches of a side of a panel with a matrix, of so many beside each other."""
    return {1: LONE_PANEL, 2: 3.6}.get(columns, PANEL)


def choose_names(salience: torch.Tensor, side: float) -> list[int]:
    """The indices of the tokens to name along a side of so many inches: all of `L`, or those that stand out most.

    salience: importance of each token, `(L,)`.
    """
    count = len(salience)
    gap = max(1, math.ceil(count * _NAME / side))
    chosen: list[int] = []
    for place in salience.argsort(descending=True, stable=True).tolist():
        if all(abs(place - other) >= gap for other in chosen):
            chosen.append(place)
    return sorted(chosen)


def room_for_names(names: Sequence[str] | None, chosen: Sequence[int], modalities: dict[str, int]) -> float:
    """Inches below a panel that `name_tokens` takes."""
    if names is None:
        return room_for(segment_labels(list(modalities), list(modalities.values()))) if modalities else 0.2
    return room_for([names[place] for place in chosen])


def room_for(labels: Sequence[str]) -> float:
    """Inches that the longest of these labels takes when it stands upright."""
    return 0.62 * NAME_SIZE / 72 * max(map(len, labels), default=0) + 0.1


def draw_matrix(panel: Axes, matrix: torch.Tensor, colours: ScalarMappable, most_cells: int = MOST_CELLS) -> None:
    """A heat map whose axes count the rows and columns of the matrix."""
    rows, columns = matrix.shape
    if max(rows, columns) > most_cells:
        size = min(rows, most_cells), min(columns, most_cells)
        matrix = nn.functional.adaptive_avg_pool2d(matrix[None], size)[0]
    norm: Any = colours.norm
    # Without interpolation an SVG holds the cells themselves, not their pixels.
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    panel.imshow(matrix.numpy(), cmap=colours.cmap, norm=norm, interpolation="none", extent=extent)


def name_tokens(
    panel: Axes, names: Sequence[str] | None, chosen: Sequence[int], modalities: dict[str, int], line: str
) -> None:
    """Names of the chosen tokens along both axes; without names those of the modalities, or numbers.

    line: the colour of what parts the modalities.
    """
    if names is not None:
        labels = unformatted([names[place] for place in chosen])
        panel.set_xticks(chosen, labels=labels, rotation=90, fontsize=NAME_SIZE)
        panel.set_yticks(chosen, labels=labels, fontsize=NAME_SIZE)
        panel.tick_params(length=2, pad=1)
    elif modalities:
        name_segments(panel, list(modalities), list(modalities.values()), line)
    else:
        panel.tick_params(labelsize=7)
        panel.locator_params(integer=True, nbins=6)


def unformatted(names: Sequence[str]) -> list[str]:
    """Names as they are: dollars would begin formulas."""
    return [name.replace("$", r"\$") for name in names]


def is_every_token_named(names: Sequence[str] | None, chosen: Sequence[int]) -> bool:
    return names is None or len(names) == len(chosen)


def finish_matrices(panels: Sequence[Axes], count: int, columns: int, are_all_named: bool) -> None:
    """Remove what is beyond `count` panels, and keep names at the left and below the last panel of every column."""
    which = "" if are_all_named else " (those that stand out)"
    for panel in panels[count:]:
        panel.remove()
    for index, panel in enumerate(panels[:count]):
        if index % columns:
            panel.tick_params(labelleft=False)
        else:
            panel.set_ylabel("query token", fontsize=8.5)
        if index + columns < count:
            panel.tick_params(labelbottom=False)
        else:
            panel.set_xlabel(f"key token{which}", fontsize=8.5)


def segment_labels(names: Sequence[str], lengths: Sequence[int]) -> list[str]:
    return [f"{name} ({length})" for name, length in zip(names, lengths, strict=True)]


def name_segments(panel: Axes, names: Sequence[str], lengths: Sequence[int], colour: str = "white") -> None:
    """Names at the middle of the segments, lines between them."""
    stops = list(accumulate(lengths))
    # Segments without tokens may share a place with each other.
    found: dict[tuple[float, int], list[str]] = {}
    for name, stop, length in zip(names, stops, lengths, strict=True):
        found.setdefault((stop - length / 2 - 0.5, length), []).append(name)
    middles = [middle for middle, _ in found]
    labels = segment_labels([", ".join(together) for together in found.values()], [length for _, length in found])
    panel.set_xticks(middles, labels=labels, rotation=90, fontsize=NAME_SIZE)
    panel.set_yticks(middles, labels=labels, fontsize=NAME_SIZE)
    panel.tick_params(length=0)
    for stop in stops[:-1]:
        panel.axhline(stop - 0.5, color=colour, linewidth=1)
        panel.axvline(stop - 0.5, color=colour, linewidth=1)

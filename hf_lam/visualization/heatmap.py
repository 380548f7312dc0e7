"""Weights of any mechanism, in the picture that it gives of itself, as a heat map."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import torch

from ..modeling.mechanism_hf_lam import Picture
from ._drawing import WEIGHT_COLOURS, diverging_colours, draw_matrix, matplotlib_figure, titled_figure

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

# Inches of a cell; the least and the most of a panel.
_CELL = 0.32
_WIDTH, _HEIGHT = (2.6, 7.3), (2.2, 7.0)
# Cells along an axis that are told apart.
_MOST_CELLS = 400
# Numbers along an axis, and letters in a line of its name, that a small panel has room for.
_MOST_NUMBERS = 12
_LETTERS = 30
# Of cells without a finite value.
_NO_VALUE = "#bbbbbb"


def plot_picture(picture: Picture, title: str | None = None) -> Figure:
    """A heat map of what a mechanism's weights look like (`Mechanism.draw`).

    White is `picture.neutral` where the values lie around it, red is more and blue is less, equally strong on both
    sides. Where all of them lie on one side of it, yellow is the largest and dark blue the smallest. What is not
    finite is grey.

    Args:
        picture: picture to draw.
        title: title above it, such as the name of the model; `picture.label`, which says what the values are, unless
            given.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the values are not `(R, C)`, or there are none.

    Examples:
        >>> import torch
        >>> from hf_lam import Picture
        >>> from hf_lam.visualization import plot_picture
        >>> picture = Picture("Temperatures.", torch.rand(12, 8), "layer", "head", "temperature", neutral=1.0)
        >>> figure = plot_picture(picture, "Temperatures of my model")
    """
    figure_class = matplotlib_figure()
    values = picture.values.detach()
    # A DTensor has a part in every process (FSDP2).
    values = values.full_tensor() if hasattr(values, "full_tensor") else values
    values = values.float().cpu()
    if values.dim() != 2 or not values.numel():
        raise ValueError(
            f"the values of a Picture must be a tensor of rows and columns, got one of shape {tuple(values.shape)}."
        )
    rows, columns = values.shape
    width, height = (
        min(max(least, _CELL * cells), most) for cells, (least, most) in ((columns, _WIDTH), (rows, _HEIGHT))
    )
    figure = titled_figure(figure_class, width + 1.7, height + 0.7, picture.label if title is None else title)
    panel = figure.subplots()
    colours = _choose_colours(values, picture.neutral)
    draw_matrix(panel, values.masked_fill(~values.isfinite(), torch.nan), colours, _MOST_CELLS)
    panel.set_aspect("auto")
    panel.set_facecolor(_NO_VALUE)
    panel.locator_params(integer=True, nbins=_MOST_NUMBERS, min_n_ticks=1)
    panel.tick_params(labelsize=7)
    panel.set_xlabel(textwrap.fill(picture.columns, _LETTERS), fontsize=9)
    panel.set_ylabel(textwrap.fill(picture.rows, _LETTERS), fontsize=9)
    bar = figure.colorbar(colours, ax=panel, pad=0.02)
    bar.set_label(textwrap.fill(picture.label, _LETTERS), fontsize=9)
    bar.ax.tick_params(labelsize=7)
    return figure


def _choose_colours(values: torch.Tensor, neutral: float) -> ScalarMappable:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    finite = values[values.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (neutral, neutral)
    if low <= neutral <= high:
        return diverging_colours([finite if len(finite) else torch.tensor([neutral])], neutral)
    return ScalarMappable(Normalize(low, high), WEIGHT_COLOURS)

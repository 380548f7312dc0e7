"""Figures that a notebook shows."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """matplotlib's `Figure`, without pyplot: nothing global is touched and no display is needed.

    Jupyter draws a plain `Figure` only after someone has imported pyplot; this one says itself what it looks like.
    """

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()

"""Labels beside points and lines, which hide neither these nor each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

_LABEL_SIZE = 8
# Where a label may be: so many points away from its own, in so many directions.
_DISTANCES = (5, 9, 15, 23, 33, 45, 60, 80, 105)
_DIRECTIONS = 24
# From this distance on a line joins the two.
_JOINED = 12

Point = tuple[float, float]
Line = tuple[Point, Point]


def place_labels(
    panel: Axes,
    points: Sequence[Point],
    labels: Sequence[str],
    colours: Sequence[str],
    obstacles: Sequence[Line] = (),
) -> None:
    """Write a label beside each point so that it hides no point and no other label; a thin line where it is far.

    The layout of the figure and the limits of the panel must not change afterwards (`freeze_layout`).

    Args:
        panel: panel with the points.
        points: points in data coordinates.
        labels: one for each point.
        colours: colour of each label.
        obstacles: error bars and the like, which labels should not lie on; the ends of each in data coordinates.
    """
    from matplotlib.patheffects import withStroke

    figure: Any = panel.figure
    pixels = figure.dpi / 72
    frame = _box_of(panel.get_window_extent())
    where = [_in_pixels(panel, point) for point in points]
    taken = [_Box(x - 4 * pixels, y - 4 * pixels, x + 4 * pixels, y + 4 * pixels) for x, y in where]
    lines = [(_in_pixels(panel, start), _in_pixels(panel, end)) for start, end in obstacles]
    joins: list[Line] = []
    # Those with the most neighbours have the fewest places left.
    near = [sum(math.dist(point, other) < 60 * pixels for other in where) for point in where]
    for index in sorted(range(len(points)), key=lambda index: -near[index]):
        text = panel.annotate(
            labels[index],
            points[index],
            (0, 0),
            textcoords="offset points",
            fontsize=_LABEL_SIZE,
            color=_legible(colours[index]),
            zorder=5,
            path_effects=[withStroke(linewidth=2, foreground="white", alpha=0.8)],
        )
        drawn = _box_of(text.get_window_extent(figure.canvas.get_renderer()))
        best, least = None, math.inf
        for place in _places(where[index], drawn, pixels):
            if place.distance / 12 >= least:
                break  # those that follow are farther
            badness = place.distance / 12 + _badness(place, where[index], frame, taken, lines, joins)
            if badness < least:
                best, least = place, badness
        assert best is not None
        text.set_position(((best.box.left - drawn.left) / pixels, (best.box.bottom - drawn.bottom) / pixels))
        taken.append(best.box)
        if best.distance >= _JOINED:
            joins.append((where[index], best.edge))
            end = panel.transData.inverted().transform(best.edge)
            x, y = zip(points[index], end, strict=True)
            panel.plot(x, y, color=colours[index], linewidth=0.5, alpha=0.7, zorder=1.5, scalex=False, scaley=False)


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.top - self.bottom)


class _Place(NamedTuple):
    """A possible place of a label: its box, the nearest point of the box to its own, and how far that is (points)."""

    box: _Box
    edge: Point
    distance: float


def _box_of(extent: Bbox) -> _Box:
    return _Box(*map(float, extent.extents))


def _in_pixels(panel: Axes, point: Point) -> Point:
    x, y = panel.transData.transform(point)
    return float(x), float(y)


def _places(point: Point, drawn: _Box, pixels: float) -> list[_Place]:
    """The places around a point for a label of this size, the nearest first; of equals, right of it."""
    x, y = point
    width, height = drawn.right - drawn.left, drawn.top - drawn.bottom
    found = []
    for distance in _DISTANCES:
        for turn in range(_DIRECTIONS):
            angle = 2 * math.pi * turn / _DIRECTIONS
            left = x - width / 2 + math.cos(angle) * (distance * pixels + width / 2)
            bottom = y - height / 2 + math.sin(angle) * (distance * pixels + height / 2)
            box = _Box(left, bottom, left + width, bottom + height)
            edge = (min(max(x, box.left), box.right), min(max(y, box.bottom), box.top))
            found.append(_Place(box, edge, math.dist(point, edge) / pixels))
    return sorted(found, key=lambda place: place.distance)


def _badness(
    place: _Place,
    point: Point,
    frame: _Box,
    taken: Sequence[_Box],
    lines: Sequence[Line],
    joins: Sequence[Line],
) -> float:
    """A measure of what a label at this place hides: markers and other labels, lines, and lines to labels."""
    box = place.box
    hidden = [overlap / box.area for other in taken if (overlap := _overlap(box, other))]
    outside = 1 - _overlap(box, frame) / box.area
    crossed = sum(_crosses(box, line) for line in lines)
    through = sum(_crosses(box, line) for line in joins)
    if place.distance >= _JOINED:
        join = (point, place.edge)
        # Markers that lie over its own are in the way of any line.
        through += sum(_crosses(other, join) for other in taken if not _crosses(other, (point, point)))
        through += sum(_meet(join, other) for other in joins)
    return 15 * len(hidden) + 60 * sum(hidden) + 100 * outside + 3 * crossed + 6 * through


def _overlap(left: _Box, right: _Box) -> float:
    """The area that two boxes share."""
    width = min(left.right, right.right) - max(left.left, right.left)
    height = min(left.top, right.top) - max(left.bottom, right.bottom)
    return width * height if width > 0 and height > 0 else 0.0


def _crosses(box: _Box, line: Line) -> bool:
    """Whether a line runs through a box (Liang and Barsky: the part of it that is within every side)."""
    (x, y), (to_x, to_y) = line
    first, last = 0.0, 1.0
    for way, low, high in (
        (to_x - x, box.left - x, box.right - x),
        (to_y - y, box.bottom - y, box.top - y),
    ):
        if not way:
            if low > 0 or high < 0:
                return False
            continue
        enters, leaves = sorted((low / way, high / way))
        first, last = max(first, enters), min(last, leaves)
    return first <= last


def _meet(one: Line, other: Line) -> bool:
    """Whether two lines cross."""

    def turns(line: Line, point: Point) -> float:
        (x, y), (to_x, to_y) = line
        return (to_x - x) * (point[1] - y) - (to_y - y) * (point[0] - x)

    return turns(one, other[0]) * turns(one, other[1]) < 0 and turns(other, one[0]) * turns(other, one[1]) < 0


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved apart, as little as possible, so that neighbours are `gap` apart and all are within the bounds.

    Where there is no room for all, the gap is smaller.
    """
    if len(places) < 2:
        return [min(max(place, low), high) for place in places]
    gap = min(gap, (high - low) / (len(places) - 1))
    order = sorted(range(len(places)), key=lambda index: places[index])
    # Without the gaps that are due, places have only to be in order: neighbours that are not are drawn to their mean.
    blocks: list[list[float]] = []
    for rank, index in enumerate(order):
        blocks.append([places[index] - rank * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) >= _mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    means = [_mean(block) for block in blocks for _ in block]
    top = high - gap * (len(places) - 1)
    found = [0.0] * len(places)
    for rank, index in enumerate(order):
        found[index] = min(max(means[rank], low), top) + rank * gap
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def label_ends(panel: Axes, ends: Sequence[Point], labels: Sequence[str], colours: Sequence[str]) -> None:
    """Write a label at the end of each line, right of the panel, one below the other without overlapping.

    The layout of the figure and the limits of the panel must not change afterwards (`freeze_layout`).
    """
    figure: Any = panel.figure
    pixels = figure.dpi / 72
    frame = _box_of(panel.get_window_extent())
    height = frame.top - frame.bottom
    gap = 1.25 * _LABEL_SIZE * pixels / height
    places = spread([(_in_pixels(panel, end)[1] - frame.bottom) / height for end in ends], gap, 0, 1)
    right = 1 + 14 * pixels / (frame.right - frame.left)
    for end, place, label, colour in zip(ends, places, labels, colours, strict=True):
        panel.annotate(
            label,
            end,
            (right, place),
            textcoords="axes fraction",
            fontsize=_LABEL_SIZE,
            color=_legible(colour),
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "alpha": 0.7,
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def _legible(colour: str) -> tuple[float, ...]:
    """The colour, dark enough for letters on white."""
    from matplotlib.colors import to_rgb

    return tuple(0.65 * part for part in to_rgb(colour))


def label_width(labels: Sequence[str]) -> float:
    """Inches that the longest of these labels takes, about."""
    return 0.55 * _LABEL_SIZE / 72 * max(map(len, labels), default=0)

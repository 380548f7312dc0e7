"""What pictures of measured points are made of: labels, Pareto fronts, scales."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.text import Text

from hf_lam.visualization.labels import label_ends, place_labels, spread
from hf_lam.visualization.scatter import (
    captioned_figure,
    choose_scale,
    crowded_range,
    draw_front,
    freeze_layout,
    pareto_front,
    styles_for,
)

# --- Pareto fronts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_the_front_has_what_nothing_else_beats(greater_is_better: bool) -> None:
    random = np.random.default_rng(0)
    costs, values = random.integers(0, 20, 60).tolist(), random.integers(0, 20, 60).tolist()
    sign = 1 if greater_is_better else -1

    def beats(other: int, one: int) -> bool:
        ours, theirs = (costs[one], -sign * values[one]), (costs[other], -sign * values[other])
        return theirs != ours and all(their <= our for their, our in zip(theirs, ours, strict=True))

    expected = {(costs[i], values[i]) for i in range(60) if not any(beats(j, i) for j in range(60))}
    front = pareto_front(costs, values, greater_is_better)
    assert {(costs[i], values[i]) for i in front} == expected
    assert [costs[i] for i in front] == sorted({cost for cost, _ in expected}), "cheapest first, and each once"


def test_the_front_is_drawn_as_what_can_be_had_for_a_cost() -> None:
    panel = captioned_figure(4, 3, "").subplots()
    lines = draw_front(panel, [3.0, 1.0, 2.0, 4.0], [0.9, 0.5, 0.4, 0.8])
    assert lines == [((1.0, 0.5), (3.0, 0.5)), ((3.0, 0.5), (3.0, 0.9))]
    draw_front(panel, [1.0], [2.0])


# --- labels ----------------------------------------------------------------------------------------------------------


def boxes_of(panel: Any) -> list[Any]:
    renderer = panel.figure.canvas.get_renderer()
    for text in panel.texts:
        text.update_positions(renderer)
    # Of the text alone: that of an annotation has its arrow in it.
    return [Text.get_window_extent(text, renderer) for text in panel.texts]


def overlap(left: Any, right: Any) -> bool:
    width = min(left.x1, right.x1) - max(left.x0, right.x0)
    height = min(left.y1, right.y1) - max(left.y0, right.y0)
    return width > 0.5 and height > 0.5


def crowd(number: int, seed: int = 0) -> list[tuple[float, float]]:
    """Most points close together, as rows of a study are."""
    random = np.random.default_rng(seed)
    near = random.normal([2.0, 76.5], [0.08, 0.3], (number - 2, 2))
    return [(float(x), float(y)) for x, y in [*near, (0.7, 75.0), (1.0, 75.5)]]


@pytest.mark.parametrize("points", [crowd(20), crowd(3), [(2.0, 70 + y / 4) for y in range(16)], [(1.0, 1.0)] * 5])
def test_labels_overlap_neither_each_other_nor_points(points: list[tuple[float, float]]) -> None:
    figure = captioned_figure(7, 5, "")
    panel = figure.subplots()
    panel.plot(*zip(*points, strict=True), "o")
    panel.margins(0.2)
    freeze_layout(figure)
    names = [f"row_number_{index}" for index in range(len(points))]
    place_labels(panel, points, names, ["#0072B2"] * len(points))
    boxes = boxes_of(panel)
    assert [text.get_text() for text in panel.texts] and {text.get_text() for text in panel.texts} == set(names)
    assert not [pair for pair in itertools.combinations(boxes, 2) if overlap(*pair)]
    frame = panel.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 <= box.y1 <= frame.y1 for box in boxes)
    for x, y in panel.transData.transform(points):
        assert not [box for box in boxes if box.x0 < x < box.x1 and box.y0 < y < box.y1]


def test_a_label_lies_beside_its_own_point() -> None:
    figure = captioned_figure(7, 5, "")
    panel = figure.subplots()
    points = [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    panel.plot(*zip(*points, strict=True), "o")
    freeze_layout(figure)
    place_labels(panel, points, ["a", "b", "c"], ["black"] * 3)
    texts = {text.get_text(): box for text, box in zip(panel.texts, boxes_of(panel), strict=True)}
    for name, point in zip("abc", panel.transData.transform(points), strict=True):
        middle = (texts[name].x0 + texts[name].x1) / 2, (texts[name].y0 + texts[name].y1) / 2
        assert math.dist(middle, point) < 30


def test_a_label_keeps_off_bars_where_there_is_room() -> None:
    figure = captioned_figure(7, 5, "")
    panel = figure.subplots()
    panel.set(xlim=(0, 2), ylim=(0, 2))
    freeze_layout(figure)
    place_labels(panel, [(1.0, 1.0)], ["name"], ["black"], [((0.0, 1.0), (2.0, 1.0)), ((1.0, 0.0), (1.0, 2.0))])
    ((x, y),) = panel.transData.transform([(1.0, 1.0)])
    (box,) = boxes_of(panel)
    assert (box.y0 > y or box.y1 < y) and (box.x0 > x or box.x1 < x)


def test_labels_at_the_ends_of_lines_are_below_each_other() -> None:
    figure = captioned_figure(7, 3, "", right=1.5)
    panel = figure.subplots()
    ends = [(10.0, 0.50 + index / 1000) for index in range(9)]
    for _, end in ends:
        panel.plot([0, 10], [0, end])
    freeze_layout(figure)
    label_ends(panel, ends, [f"row {index}" for index in range(9)], ["black"] * 9)
    boxes = boxes_of(panel)
    assert not [pair for pair in itertools.combinations(boxes, 2) if overlap(*pair)]
    assert [box.y0 for box in boxes] == sorted(box.y0 for box in boxes), "in the order of the ends"
    assert min(box.x0 for box in boxes) > panel.get_window_extent().x1
    assert max(box.x1 for box in boxes) < figure.bbox.x1


@pytest.mark.parametrize(
    ("places", "gap", "expected"),
    [
        ([1.0, 5.0], 1, [1, 5]),
        ([5.0, 5.0], 2, [4, 6]),
        ([5.0, 1.0, 5.0], 2, [4, 1, 6]),
        ([0.0, 0.0], 2, [0, 2]),
        ([10.0, 10.0], 2, [8, 10]),
        ([4.9, 5.0, 5.1, 8.0], 2, [3, 5, 7, 9]),
        ([-3.0], 1, [0]),
        ([5.0] * 5, 100, [0, 2.5, 5, 7.5, 10]),
    ],
)
def test_places_are_moved_apart_as_little_as_possible(places: list[float], gap: float, expected: list[float]) -> None:
    found = spread(places, gap, 0, 10)
    if places == [4.9, 5.0, 5.1, 8.0]:
        # All four touch: they move together, so that their moves cancel.
        assert np.diff(sorted(found)).tolist() == pytest.approx([2, 2, 2]) and np.mean(found) == pytest.approx(5.75)
    else:
        assert found == pytest.approx(expected)


# --- scales and captions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([55, 57, *[76 + index / 10 for index in range(12)]], (76, 77.1)),
        ([0.0, -20.0, 0.1, 0.2, -0.1], (-0.1, 0.2)),
        (list(range(10)), None),
        ([1.0, 1.0, 1.0, 1.0], None),
        ([1.0, 1.0, 5.0], None),
        ([1, 2, 3, 9, 10, 11], None),
        ([], None),
    ],
)
def test_what_is_crowded_is_enlarged(values: list[float], expected: tuple[float, float] | None) -> None:
    assert crowded_range(values) == expected


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1, 2, 5], "linear"),
        ([1, 9], "log"),
        ([0, 100], "linear"),
        ([-1, 100], "linear"),
        ([], "linear"),
        ([3], "linear"),
    ],
)
def test_a_wide_range_of_positive_values_is_on_a_log_axis(values: list[float], scale: str) -> None:
    panel = captioned_figure(4, 3, "").subplots()
    choose_scale(panel, "x", values)
    assert (panel.get_xscale(), panel.get_yscale()) == (scale, "linear")


def test_the_caption_is_whole_and_below_the_panels() -> None:
    caption = "A caption that says what is seen, of how many seeds, and what the bars are. " * 6
    figure = captioned_figure(5, 3, caption, "A title")
    panel = figure.subplots()
    panel.set_xlabel("a name")
    freeze_layout(figure)
    (text,) = figure.texts[:1]
    assert " ".join(text.get_text().split()) == caption.strip()
    box = text.get_window_extent(figure.canvas.get_renderer())
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1
    assert box.y1 < panel.xaxis.label.get_window_extent().y0
    # The panel has the room that was asked for.
    assert figure.get_size_inches()[1] > 3.5 and figure.get_size_inches()[0] == 5


def test_forty_rows_can_be_told_apart_by_colour_or_marker() -> None:
    styles = styles_for(42)
    assert len(set(styles)) == 42
    assert all(one.colour != next_.colour and one.marker != next_.marker for one, next_ in itertools.pairwise(styles))

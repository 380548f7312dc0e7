"""The picture of what was found in a video."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_lam.modeling.fusion_moments_hf_lam import Moment, Retrieved
from hf_lam.visualization import plot_moments

pytest.importorskip("matplotlib")

FOUND = Retrieved(
    [Moment(2.0, 8.0, 0.9), Moment(6.0, 6.0, 0.4), Moment(0.0, 12.0, 0.1)],
    torch.tensor([-0.5, 0.5, 1.5, 1.0, 0.0, -0.5]),
)


def bars_of(panel: Any) -> list[tuple[float, float]]:
    return [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in panel.patches]


def test_windows_and_scores_lie_on_one_axis() -> None:
    figure = plot_moments(FOUND, "a dog barks", windows=[[2, 6], [8, 10]])
    curve, bars = figure.axes
    assert figure.get_suptitle() == "a dog barks"
    values, edges, _ = curve.patches[0].get_data()
    assert values.tolist() == FOUND.saliency.tolist() and edges.tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert bars_of(bars) == [(2, 8), (6, 6), (0, 12), (2, 6), (8, 10)]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["0.90", "0.40", "0.10", "true"]
    assert bars.get_xlim() == (0, 12) and bars.yaxis_inverted()


def test_what_is_not_known_is_not_drawn() -> None:
    _, bars = plot_moments(FOUND, "a dog barks", most=1, clip_length=1.0).axes
    assert bars_of(bars) == [(2, 8)] and bars.get_xlim() == (0, 6)
    _, _, people = plot_moments(FOUND, "a dog barks", scores=[0, 3, 9, 3, 0, 0]).axes
    assert people.patches[0].get_data().values.tolist() == [0, 3, 9, 3, 0, 0]


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="2 scores for a video of 6 clips"):
        plot_moments(FOUND, "a dog barks", scores=[1, 2])
    with pytest.raises(ValueError, match="most must be at least 1"):
        plot_moments(FOUND, "a dog barks", most=0)


def test_a_query_is_no_formula() -> None:
    figure = plot_moments(FOUND, "pays $5, gets $4_ back")
    figure.canvas.draw()
    assert not figure._suptitle.get_parse_math()

"""calibrate_front: the tables of calibrate_views for many budgets, measured once."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch

import hf_lam
from helpers.hosts import make_host, make_inputs
from hf_lam import LocomtConfig
from hf_lam.locomt.calibration import MeasuredViews, calibrate_views, measure_views
from hf_lam.locomt.fronts import CalibrationFront, calibrate_front
from hf_lam.modeling.injection_hf_lam import injection_of

BUDGETS = (0.3, 0.45, 0.6, 0.75, 0.9, 1.0)


def make_viewed(host: str, config: LocomtConfig | None = None) -> Any:
    """A tiny model with sharp attention."""
    return hf_lam.inject(make_host(host, initializer_range=0.5), config or LocomtConfig())


def make_batch(host: str) -> dict[str, torch.Tensor]:
    inputs = make_inputs(host, batch=3, seed=1)
    if host == "bert":
        inputs["token_type_ids"] = torch.tensor([[0] * 4 + [1] * 7, [0] * 6 + [1] * 5, [0] * 11])
    return inputs


@pytest.mark.parametrize("host", ["bert", "vit", "videomae"])
def test_every_point_is_what_calibrate_views_finds_for_its_budget(host: str) -> None:
    model, batches = make_viewed(host), [make_batch(host)]
    least = measure_views(model, batches, None).least
    budgets = [least + (1 - least) * share for share in (1.0, 0.0, 0.25, 0.5, 0.75)]
    front = calibrate_front(model, batches, budgets)
    assert [point.budget for point in front.points] == sorted(budgets)
    for point in front.points:
        assert (point.config, point.report) == calibrate_views(model, batches, point.budget)
    assert front.points[0].flops_fraction == pytest.approx(least)
    assert front.points[-1].kept == pytest.approx(front.total)


def test_the_data_are_gone_through_once() -> None:
    batches = iter([make_batch("vit")])
    front = calibrate_front(make_viewed("vit"), batches)
    assert len(front.points) == 11
    assert next(batches, None) is None
    assert front.samples == 3


def test_candidates_are_those_of_calibrate_views() -> None:
    candidates = ["self", "full"]
    model, batches = make_viewed("vit"), [make_batch("vit")]
    (point,) = calibrate_front(model, batches, [0.7], candidates=candidates).points
    assert point.config == calibrate_views(model, batches, 0.7, candidates=candidates)[0]
    assert {view for row in point.config.views for view in row} <= set(candidates)


def test_what_a_random_order_keeps_is_the_mean_over_all_orders() -> None:
    model = make_viewed("videomae")
    measured = measure_views(model, [make_batch("videomae")], None)
    for point in calibrate_front(model, [make_batch("videomae")], [0.6, 0.8]).points:
        views = [view for row in point.report.views for view in row]
        option = {name: index for index, name in enumerate(measured.candidates)}
        # In these orders, as in all of them together, every view comes to every head equally often.
        orders = [views[start:] + views[:start] for start in range(len(views))]
        means = [
            sum(value[option[view]] for value, view in zip(measured.values, order, strict=True)) / len(order)
            for order in orders
        ]
        assert point.kept_in_any_order == pytest.approx(sum(means) / len(means))
        assert point.kept_in_any_order < point.kept


@pytest.mark.parametrize("preset", ["self", "half", "cross", "round_robin"])
def test_presets_are_measured_as_tables(preset: str) -> None:
    """Against a calibration that has no choice: each layer's heads have the one candidate."""
    model, batches = make_viewed("videomae"), [make_batch("videomae")]
    cost, kept = calibrate_front(model, batches, [1.0]).presets[preset]
    injected = hf_lam.inject(make_host("videomae"), LocomtConfig(views=preset))
    table = injection_of(injected).configs["locomt"].views
    reports = {
        view: calibrate_views(model, batches, 1.0, candidates=[view])[1] for view in {v for row in table for v in row}
    }
    by_hand = [
        reports[view].mass_kept[layer][head] for layer, row in enumerate(table) for head, view in enumerate(row)
    ]
    costs = [reports[view].flops_fraction for row in table for view in row]
    assert kept == pytest.approx(sum(by_hand) / len(by_hand))
    assert cost == pytest.approx(sum(costs) / len(costs))


def test_a_larger_budget_never_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the near-exact choice of the larger budget is the worse one."""
    model = make_viewed("vit")
    choose_within = MeasuredViews.choose_within
    # The larger budget's choice is made with almost nothing to spend.
    monkeypatch.setattr(
        MeasuredViews, "choose_within", lambda self, b: choose_within(self, self.least if b == 0.9 else b)
    )
    front = calibrate_front(model, [make_batch("vit")], [0.5, 0.9, 1.0])
    assert front.points[1].config == front.points[0].config
    assert front.points[1].report.budget == front.points[1].budget == 0.9
    for low, high in pairwise(front.points):
        assert low.kept <= high.kept


def test_budgets_that_no_table_meets_are_left_out_with_one_warning() -> None:
    model = make_viewed("videomae")  # two halves: self takes half of the FLOPs
    with pytest.warns(UserWarning, match=r"meets the budgets \[0\.1, 0\.2\].*cheapest takes 0\.5000") as caught:
        front = calibrate_front(model, [make_batch("videomae")], [0.2, 0.6, 0.1])
    assert len(caught) == 1
    assert [point.budget for point in front.points] == [0.6]
    with pytest.raises(ValueError, match=r"budget=0\.1: the cheapest of the candidates .* takes 0\.5000"):
        calibrate_front(model, [make_batch("videomae")], [0.1, 0.2])


@pytest.mark.parametrize("budgets", [[0.0], [1.5], [True], ["half"], []])
def test_bad_budgets_are_refused_before_the_model_runs(budgets: list[Any]) -> None:
    def batches() -> Any:
        raise AssertionError("the data were asked for")
        yield

    with pytest.raises(ValueError, match="budget"):
        calibrate_front(make_viewed("vit"), batches(), budgets)


@pytest.mark.parametrize("budgets", [0.5, "0.5"])
def test_one_budget_is_for_calibrate_views(budgets: Any) -> None:
    with pytest.raises(TypeError, match="calibrate_views takes one budget"):
        calibrate_front(make_viewed("vit"), [], budgets)


# --- tables and pictures ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def front() -> CalibrationFront:
    return calibrate_front(make_viewed("videomae"), [make_batch("videomae")], [0.5, 0.75, 1.0])


def test_it_is_a_table_and_plain_json(front: CalibrationFront) -> None:
    lines = front.to_markdown().splitlines()
    assert len(lines) == 2 + 3 + 4
    assert {line.count("|") for line in lines} == {6}
    assert lines[2].startswith("| 50 % | 50.0 |")
    assert lines[5].startswith("| `self` | 50.0 |")
    assert json.loads(json.dumps(front.to_dict())) == front.to_dict()
    assert [point["kept"] for point in front.to_dict()["points"]] == [point.kept for point in front.points]


def test_the_picture_has_every_point_and_names_every_preset(front: CalibrationFront) -> None:
    pytest.importorskip("matplotlib")
    figure = hf_lam.visualization.plot_front(front)
    (panel,) = figure.axes
    calibrated, unordered, full = panel.lines[:3]
    assert calibrated.get_xdata() == pytest.approx([100 * p.flops_fraction for p in front.points])
    assert calibrated.get_ydata() == pytest.approx([100 * p.kept for p in front.points])
    assert unordered.get_ydata() == pytest.approx([100 * p.kept_in_any_order for p in front.points])
    assert full.get_ydata()[0] == pytest.approx(100 * front.total)
    named = {name for text in panel.texts for name in text.get_text().split(", ")}
    lines = {"calibrated", "the same views in any order", "full views"}
    assert named == {"self", "half", "cross", "round_robin", *lines}
    assert "measured on 3 samples" in " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert figure._repr_png_().startswith(b"\x89PNG")

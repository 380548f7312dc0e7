"""Results as pictures: which there are, and what they show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.compared import draw_values, make_results, make_row, make_times

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from hf_lam.comparing.cost_plots import draw_metric_over_cost
from hf_lam.comparing.curve_plots import (
    draw_difference_over_option,
    draw_learning_curves,
    draw_metric_over_option,
)
from hf_lam.comparing.difference_plots import draw_differences
from hf_lam.comparing.plots import write_plots
from hf_lam.comparing.summaries import Summary, summarize

SEEDS = 6
MEANS = {"full": 0.70, "half": 0.72, "lam": 0.75, "late": 0.69}


def make_rows(
    means: Mapping[str, float] = MEANS, seeds: int = SEEDS, flops: Mapping[str, float] | None = None, **more: Any
) -> list[dict[str, Any]]:
    return [
        make_row(name, draw_values(mean, 0.002, seeds, draw), flops=(flops or {}).get(name, 2e9 + draw * 1e8), **more)
        for draw, (name, mean) in enumerate(means.items())
    ]


def make_varied(flops: Mapping[Any, float], option: str = "samples") -> list[dict[str, Any]]:
    """Two rows at each of some values of an option, at which both cost so much."""
    return [
        make_row(
            f"{name}, {option}={value}",
            draw_values(0.6 + 0.05 * place + gain, 0.002, SEEDS, draw),
            point={option: value},
            group=name,
            flops=cost,
        )
        for draw, (name, gain) in enumerate((("full", 0.0), ("half", 0.03)))
        for place, (value, cost) in enumerate(flops.items())
    ]


def summary_of(rows: Sequence[Mapping[str, Any]], **plan: Any) -> Summary:
    return summarize(make_results(rows, **plan), make_times(rows))


def labels_in(panel: Any) -> set[str]:
    return {text.get_text() for text in panel.texts}


def caption_of(figure: Any) -> str:
    return " ".join(figure.texts[0].get_text().split())


def marks_in(panel: Any) -> list[tuple[float, float]]:
    """The points of a panel, one for each container of error bars."""
    return [
        (float(x), float(y))
        for container in panel.containers
        for x, y in zip(*container.lines[0].get_data(), strict=True)
    ]


# --- the files -------------------------------------------------------------------------------------------------------


def test_there_is_a_file_for_all_that_the_results_have(tmp_path: Path) -> None:
    rows = make_rows({"full": 0.7, "half": 0.72}, seeds=2)
    paths = write_plots(make_results(rows), make_times(rows), tmp_path / "new")
    names = [path.name for path in paths]
    assert names == [
        "metric_over_flops.png",
        "metric_over_inference_time.png",
        "metric_over_step_time.png",
        "differences.png",
        "learning_curves.png",
    ]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names), "nothing else"
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert len({path.read_bytes() for path in paths}) == len(paths)


def test_what_the_results_do_not_have_is_not_drawn_and_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    rows = make_rows({"full": 0.7}, seeds=1)
    for run in rows[0]["runs"]:
        run["curve"] = run["curve"][-1:]
    first, second = (write_plots(make_results(rows), {}, tmp_path / name) for name in ("first", "second"))
    assert [path.name for path in first] == ["metric_over_flops.png"]
    assert first[0].read_bytes() == second[0].read_bytes()


def test_nothing_that_failed_as_a_whole_is_drawn(tmp_path: Path) -> None:
    rows = [make_row(name, {0: None}, errors={0: "gone"}) for name in ("full", "half")]
    assert write_plots(make_results(rows), {}, tmp_path) == []


def test_what_varies_names_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, format: path.touch())
    rows = make_varied({1000: 2e9, 16000: 2e9}, "max_train_samples")
    names = {path.name for path in write_plots(make_results(rows), {}, tmp_path)}
    assert names == {
        "metric_over_flops.png",
        "differences.png",
        "learning_curves_max_train_samples-1000.png",
        "learning_curves_max_train_samples-16000.png",
        "metric_over_max_train_samples.png",
        "difference_over_max_train_samples.png",
    }


# --- metric over cost ------------------------------------------------------------------------------------------------


def test_points_are_means_over_costs_with_their_names() -> None:
    summary = summary_of(make_rows())
    figure = draw_metric_over_cost(summary, "flops")
    (panel,) = figure.axes
    assert marks_in(panel) == [pytest.approx((row.costs["flops"] / 1e9, row.mean)) for row in summary.rows]
    assert {*MEANS, "chance"} <= labels_in(panel) or {*MEANS} <= labels_in(panel)
    assert panel.get_xlabel() == "GFLOPs of a forward pass of a sample"
    assert panel.get_ylabel() == "validation accuracy, %"
    caption = caption_of(figure)
    assert f"mean of {SEEDS} seeds; bars are the standard deviation over seeds" in caption and "Pareto" in caption
    # The baseline, all along the panel.
    dashed = [line for line in panel.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == [summary.rows[0].mean]


@pytest.mark.parametrize(("cost", "name"), [("inference_ms", "inference"), ("step_ms", "a training step")])
def test_measured_times_have_their_spread(cost: str, name: str) -> None:
    summary = summary_of(make_rows(seeds=1))
    figure = draw_metric_over_cost(summary, cost)
    assert figure.axes[0].get_xlabel() == f"milliseconds of {name}"
    assert [x for x, _ in marks_in(figure.axes[0])] == [pytest.approx(row.cost(cost)) for row in summary.rows]
    (bars,) = figure.axes[0].containers[0].lines[2]
    ((left, _), (right, _)) = bars.get_segments()[0]
    assert (left, right) == pytest.approx((summary.rows[0].times[cost]["low"], summary.rows[0].times[cost]["high"]))
    assert "bars are the lowest and highest of rounds, batch of 32, a processor, 2 threads" in caption_of(figure)


def test_chance_is_a_line_where_it_leaves_room_and_a_word_where_it_does_not() -> None:
    def draw(chance: float | None) -> Any:
        return draw_metric_over_cost(summary_of(make_rows(), chance=chance), "flops").axes[0]

    near, far, above, none = draw(0.68), draw(0.1), draw(0.99), draw(None)
    assert [line.get_ydata()[0] for line in near.lines if line.get_linestyle() == ":"] == [pytest.approx(68)]
    assert "chance" in labels_in(near) and "↓ chance 10" in labels_in(far) and "↑ chance 99" in labels_in(above)
    assert far.get_ylim()[0] > 60 and not [line for line in far.lines if line.get_linestyle() == ":"]
    assert not [label for label in labels_in(none) if "chance" in label]


def test_costs_of_several_orders_are_on_a_log_axis() -> None:
    flops = {"full": 4e10, "half": 1e9, "lam": 2e9, "late": 3e9}
    panel = draw_metric_over_cost(summary_of(make_rows(flops=flops)), "flops").axes[0]
    assert panel.get_xscale() == "log"
    small = draw_metric_over_cost(summary_of(make_rows(flops=dict.fromkeys(MEANS, 3e5))), "flops").axes[0]
    assert small.get_xscale() == "linear" and small.get_xlabel().startswith("MFLOPs")


def test_rows_close_together_are_enlarged_beside() -> None:
    means = {"full": 0.765, **{f"row_{index}": 0.765 + index / 1000 for index in range(8)}, "audio": 0.55}
    figure = draw_metric_over_cost(summary_of(make_rows(means)), "flops")
    whole, enlarged = figure.axes
    assert "audio" in labels_in(whole) and "full" not in labels_in(whole)
    assert {*means} - {"audio"} == {label for label in labels_in(enlarged) if "chance" not in label}
    assert len(marks_in(whole)) == 10 and len(marks_in(enlarged)) == 9
    assert enlarged.get_ylim()[0] > 70 and "the shaded part is enlarged" in caption_of(figure)


def test_what_bars_cover_is_not_enlarged() -> None:
    means = {"full": 0.7650, "a": 0.7651, "b": 0.7652, "c": 0.7653, "d": 0.7600}
    rows = [make_row(name, {0: mean - 0.02, 1: mean + 0.02}) for name, mean in means.items()]
    assert len(draw_metric_over_cost(summary_of(rows), "flops").axes) == 1


def test_what_varies_without_changing_the_cost_has_panels() -> None:
    summary = summary_of(make_varied({1000: 2e9, 4000: 2e9, 16000: 2e9}))
    figure = draw_metric_over_cost(summary, "flops")
    assert [panel.get_title() for panel in figure.axes] == ["samples = 1,000", "samples = 4,000", "samples = 16,000"]
    for panel, point in zip(figure.axes, summary.points, strict=True):
        assert [y for _, y in marks_in(panel)] == [pytest.approx(row.mean) for row in point.rows]


def test_what_varies_and_changes_the_cost_is_joined() -> None:
    figure = draw_metric_over_cost(summary_of(make_varied({0.25: 1e9, 0.5: 1.5e9, 1.0: 2e9}, "budget")), "flops")
    (panel,) = figure.axes
    assert len(marks_in(panel)) == 6 and {"half (0.25)", "full (1.0)"} <= labels_in(panel)
    assert "Lines join the points of a row, at budget in brackets." in caption_of(figure)


def test_rows_without_a_metric_are_named_in_the_caption() -> None:
    rows = [*make_rows(), make_row("gone", {0: None}, errors={0: "it failed"})]
    figure = draw_metric_over_cost(summary_of(rows), "flops")
    assert "gone" not in labels_in(figure.axes[0]) and "Without gone: no run gave the metric." in caption_of(figure)


# --- differences -----------------------------------------------------------------------------------------------------


def test_differences_have_a_dot_for_every_seed_and_the_interval() -> None:
    summary = summary_of(make_rows())
    figure = draw_differences(summary)
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["half", "lam", "late"]
    dots = [line for line in panel.lines if line.get_marker() == "."]
    differences = [row.difference for row in summary.rows[1:]]
    assert [list(line.get_xdata()) for line in dots] == [list(difference.values) for difference in differences]
    intervals = [list(line.get_xdata()) for line in panel.lines if line.get_linewidth() == 2.2]
    assert intervals == [[difference.low, difference.high] for difference in differences]
    assert len({line.get_color() for line in dots}) == 2, "better and worse"
    assert "(more is better)" in panel.get_xlabel() and "3 of 3 intervals leave out 0" in caption_of(figure)


def test_a_difference_far_from_the_others_is_a_number_at_the_edge() -> None:
    means = {"full": 0.765, **{f"row_{index}": 0.765 + index / 1000 for index in range(5)}, "audio": 0.55}
    rows = [*make_rows(means), make_row("gone", {0: None}, errors={0: "it failed"})]
    figure = draw_differences(summary_of(rows))
    (panel,) = figure.axes
    assert "In numbers: further away. Without gone: no run gave the metric." in caption_of(figure)
    assert "In numbers" not in caption_of(draw_differences(summary_of(make_rows())))
    (far,) = labels_in(panel)
    assert re.fullmatch(r"◀ −21\.\d+ \[−\d+\.\d+, −\d+\.\d+\]", far)
    assert panel.get_xlim()[0] > -3


def test_no_panel_of_differences_is_numbers_alone() -> None:
    rows = [
        make_row(f"{name}, n={n}", draw_values(mean, 0.0005, SEEDS, 1), point={"n": n}, group=name)
        for n, lift in ((1, 0.001), (2, 0.3))
        for name, mean in (("full", 0.5), ("lam", 0.5 + lift), ("late", 0.5 + lift))
    ]
    for panel in draw_differences(summary_of(rows)).axes:
        assert not labels_in(panel) and any(line.get_marker() == "D" for line in panel.lines)


def test_an_axis_says_if_less_is_better() -> None:
    rows = [
        make_row(f"{name}, n={n}", draw_values(1.5, 0.1, SEEDS, n), metric="mse", point={"n": n}, group=name)
        for n in (60, 240)
        for name in ("full", "lam")
    ]
    summary = summary_of(rows, metric="mse", greater_is_better=False, chance=None)
    over_option = draw_metric_over_option(summary, "n")
    for figure in (draw_metric_over_cost(summary, "flops"), over_option, draw_difference_over_option(summary, "n")):
        assert figure.axes[0].get_ylabel().endswith("(less is better)")
    # Rows side by side are near the number that they belong to.
    places = [x for line in over_option.axes[0].lines for x in line.get_xdata() if line.get_marker() in "*os"]
    assert places and all(min(abs(x - 60), abs(x - 240)) < 4 for x in places)
    greater = summary_of(rows, metric="mse", chance=None)
    assert "better" not in draw_metric_over_cost(greater, "flops").axes[0].get_ylabel()


def test_few_seeds_are_said_to_be_few() -> None:
    caption = caption_of(draw_differences(summary_of(make_rows(seeds=3))))
    assert "too few seeds to tell: fewer than 6" in caption and "Student's" in caption and "better" not in caption
    assert "intervals" not in caption_of(draw_differences(summary_of(make_rows(seeds=1))))


# --- curves ----------------------------------------------------------------------------------------------------------


def test_few_learning_curves_share_a_panel_and_many_have_one_each() -> None:
    summary = summary_of(make_rows())
    (panel,) = draw_learning_curves(summary, summary.points[0]).axes
    assert {*MEANS, "chance"} == labels_in(panel) and len(panel.collections) == len(MEANS)
    *lines, chance = panel.lines
    assert chance.get_linestyle() == ":" and chance.get_ydata()[0] == 50
    for line, row in zip(lines, summary.rows, strict=True):
        assert list(line.get_xdata()) == [10, 20, 30, 40] and line.get_ydata()[-1] == pytest.approx(row.mean)
    many = summary_of(make_rows({f"row_{index}": 0.7 for index in range(9)}, seeds=2))
    panels = draw_learning_curves(many, many.points[0]).axes
    assert [panel.get_title() for panel in panels] == [f"row_{index}" for index in range(9)]
    assert all("chance" in labels_in(panel) for panel in panels)


@pytest.mark.parametrize("metric", ["accuracy", "score"])
def test_an_axis_in_percent_ends_at_100_whatever_the_spread(metric: str) -> None:
    values = {0: 1.0, 1: 1.0, 2: 0.4}  # 80 ± 35 %
    rows = [make_row(name, values, metric=metric, point={"n": n}) for n in (1, 2) for name in ("full", "lam")]
    for row in rows:
        for run in row["runs"]:
            run["curve"] = [{"step": step, f"eval_{metric}": values[run["seed"]]} for step in (1, 2)]
    summary = summary_of(rows, metric=metric)
    figures = [
        draw_metric_over_cost(summary, "flops"),
        draw_learning_curves(summary, summary.points[0]),
        draw_metric_over_option(summary, "n"),
    ]
    for panel in [panel for figure in figures for panel in figure.axes]:
        low, high = panel.get_ylim()
        if metric == "accuracy":
            assert 100 < high <= 102 and low < 50, "chance is seen"
        else:
            assert high > 1.1


def test_without_evaluations_the_curve_is_the_loss() -> None:
    rows = make_rows(seeds=1)
    for row in rows:
        for entry in row["runs"][0]["curve"]:
            del entry["eval_accuracy"]
    summary = summary_of(rows)
    figure = draw_learning_curves(summary, summary.points[0])
    assert figure.axes[0].get_ylabel() == "training loss" and "the band" not in caption_of(figure)


def test_curves_are_of_validation_data_when_the_test_data_were_touched() -> None:
    summary = summary_of(make_rows(), tested=True)
    assert draw_learning_curves(summary, summary.points[0]).axes[0].get_ylabel() == "validation accuracy, %"


def test_the_metric_over_what_varies() -> None:
    summary = summary_of(make_varied({16000: 2e9, 1000: 2e9, 4000: 2e9}))
    figure = draw_metric_over_option(summary, "samples")
    (panel,) = figure.axes
    assert panel.get_xscale() == "log" and {"full", "half"} <= labels_in(panel)
    assert sorted(label.get_text() for label in panel.get_xticklabels()) == ["1,000", "16,000", "4,000"]
    for container in panel.containers:
        x = list(container.lines[0].get_xdata())
        assert x == sorted(x) and x[0] == pytest.approx(1000, rel=0.2), "in the order of the values"
    (differences,) = draw_difference_over_option(summary, "samples").axes
    (container,) = differences.containers
    assert all(y == pytest.approx(3, abs=0.4) for y in container.lines[0].get_ydata())
    assert differences.get_ylabel() == "difference from full, percentage points"


def test_words_that_vary_are_in_the_order_of_the_plan_and_other_options_have_panels() -> None:
    rows = [
        make_row(f"{a} {b}", {0: 0.5 + a / 10}, point={"a": a, "schedule": b}, group="full")
        for a in (0, 1)
        for b in ("linear", "cosine", "constant")
    ]
    figure = draw_metric_over_option(summary_of(rows), "schedule")
    assert [panel.get_title() for panel in figure.axes] == ["a = 0", "a = 1"]
    names = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert names == ["linear", "cosine", "constant"]
    assert draw_difference_over_option(summary_of(rows), "schedule") is None


def test_a_single_value_of_an_option_is_no_curve() -> None:
    assert draw_metric_over_option(summary_of(make_varied({1000: 2e9})), "samples") is None

"""Differences seed by seed: their intervals, and what is said of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hf_lam.comparing.statistics import (
    BETTER,
    FEWEST_SEEDS,
    NOT_TOLD_APART,
    TOO_FEW_SEEDS,
    WORSE,
    find_winner,
    note_on_chance,
    paired_difference,
)

ZEROS = dict.fromkeys(range(40), 0.0)


def by_seed(values: object) -> dict[int, float]:
    return {seed: float(value) for seed, value in enumerate(values)}  # type: ignore[call-overload, var-annotated]


def draw(number: int, mean: float = 0.0, seed: int = 0) -> dict[int, float]:
    return by_seed(np.random.default_rng(seed).normal(mean, 1, number))


def test_only_seeds_of_both_are_compared() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 5: 9.0}, {5: 8.0, 1: 0.5, 7: 3.0})
    assert (found.seeds, found.values, found.mean) == ((1, 5), (1.5, 1.0), 1.25)


def test_what_a_seed_does_to_both_cancels() -> None:
    seeds = np.random.default_rng(0).normal(0, 10, 8)
    found = paired_difference(by_seed(seeds + 0.1 + 0.01 * np.arange(8) / 8), by_seed(seeds))
    assert found.says == BETTER and found.high is not None and found.high < 0.12


@pytest.mark.parametrize("greater_is_better", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_verdict_knows_which_way_is_better(sign: int, greater_is_better: bool) -> None:
    ours = {seed: sign * (3 + value / 10) for seed, value in draw(8).items()}
    found = paired_difference(ours, ZEROS, greater_is_better=greater_is_better)
    assert found.says == (BETTER if (sign > 0) == greater_is_better else WORSE)
    assert found.is_told_apart and found.mean is not None and math.copysign(1, found.mean) == sign


def test_an_interval_that_holds_zero_tells_nothing_apart() -> None:
    found = paired_difference(by_seed([1, -1, 2, -2, 3, -3, 0.5]), ZEROS)
    assert found.says == NOT_TOLD_APART and not found.is_told_apart
    assert found.low is not None and found.high is not None and found.low < 0 < found.high


@pytest.mark.parametrize("number", [2, 3, 5])
def test_few_seeds_have_students_interval_and_no_verdict(number: int) -> None:
    # However far apart they are.
    ours = draw(number, mean=100)
    found = paired_difference(ours, ZEROS)
    expected = stats.ttest_1samp(list(ours.values()), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.says == TOO_FEW_SEEDS and not found.is_told_apart


@pytest.mark.parametrize("number", [0, 1])
def test_without_two_seeds_there_is_no_interval(number: int) -> None:
    found = paired_difference(draw(number), ZEROS)
    assert (found.low, found.high, found.says) == (None, None, TOO_FEW_SEEDS)
    assert (found.mean is None) == (number == 0)


def test_fewer_seeds_than_six_can_never_reach_five_percent_without_assumptions() -> None:
    assert 2 / 2 ** (FEWEST_SEEDS - 1) > 0.05 > 2 / 2**FEWEST_SEEDS


@pytest.mark.parametrize("number", [6, 10, 30])
def test_the_interval_is_a_bootstrap_read_further_out(number: int) -> None:
    ours = draw(number, seed=3)
    found = paired_difference(ours, ZEROS)
    tail = stats.norm.cdf(-stats.t.ppf(0.975, number - 1) * math.sqrt(number / (number - 1)))
    expected = stats.bootstrap(
        ([*ours.values()],), np.mean, confidence_level=1 - 2 * tail, n_resamples=50_000, method="percentile"
    ).confidence_interval
    spread = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05 * spread)
    plain = stats.bootstrap(([*ours.values()],), np.mean, method="percentile").confidence_interval
    assert found.low is not None and found.high is not None
    assert found.high - found.low > plain.high - plain.low


def test_the_same_values_give_the_same_interval() -> None:
    assert paired_difference(draw(9), ZEROS) == paired_difference(draw(9), ZEROS)


@pytest.mark.parametrize(("difference", "says"), [(0.0, NOT_TOLD_APART), (0.5, BETTER), (-0.5, WORSE)])
def test_rows_that_differ_by_the_same_everywhere(difference: float, says: str) -> None:
    found = paired_difference(dict.fromkeys(range(6), difference), ZEROS)
    assert (found.low, found.high, found.says) == (difference, difference, says)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite metrics, got"):
        paired_difference({0: value}, {0: 1.0})
    with pytest.raises(ValueError, match="finite metrics, got"):
        paired_difference({0: 1.0}, {1: value})


# --- several rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_a_winner_is_told_apart_from_every_other_row(greater_is_better: bool) -> None:
    base = draw(8)
    sign = 1 if greater_is_better else -1
    rows = {name: {seed: base[seed] + sign * gain for seed in base} for name, gain in (("a", 0), ("b", 2), ("c", 1))}
    assert find_winner(rows, greater_is_better=greater_is_better) == "b"
    # One that is as good, and hardly differs.
    near = {**rows, "d": {seed: rows["b"][seed] + (-1) ** seed * 0.01 for seed in base}}
    assert find_winner(near, greater_is_better=greater_is_better) is None


def test_there_is_no_winner_among_few() -> None:
    apart = {"a": dict.fromkeys(range(5), 0.0), "b": dict.fromkeys(range(5), 1.0)}
    assert find_winner(apart) is None, "too few seeds"
    assert find_winner({"a": draw(8)}) is None
    assert find_winner({"a": draw(8), "failed": {}}) is None
    assert find_winner({}) is None


def test_how_many_intervals_miss_by_chance() -> None:
    apart, not_apart = paired_difference(draw(8, 10), ZEROS), paired_difference(by_seed([1, -1] * 4), ZEROS)
    few = paired_difference(draw(3), ZEROS)
    assert note_on_chance([apart, few]) is None
    said = note_on_chance([*[apart] * 3, *[not_apart] * 17, few])
    assert said is not None and said.startswith("3 of 20 intervals leave out 0; ") and " 1 would do so" in said
    assert (note_on_chance([apart, *[not_apart] * 4]) or "").startswith("1 of 5 intervals leaves out 0; ")


@pytest.mark.slow
@pytest.mark.parametrize("number", [FEWEST_SEEDS, 10, 20])
@pytest.mark.parametrize("kind", ["normal", "heavy", "discrete"])
def test_intervals_of_95_percent_hold_the_truth_that_often(kind: str, number: int) -> None:
    random = np.random.default_rng(number)
    tries = {
        "normal": random.normal(size=(600, number)),
        "heavy": random.standard_t(4, size=(600, number)),
        "discrete": random.integers(-3, 4, size=(600, number)),
    }[kind]
    says = [paired_difference(by_seed(values), ZEROS).says for values in tries]
    # Standard error of the count: 0.9 %.
    assert 0.905 <= says.count(NOT_TOLD_APART) / len(says) <= 0.985

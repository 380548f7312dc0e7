"""The grammar of attention views, the presets, and what they cost."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_lam.modeling.locomt_views_hf_lam import (
    bottleneck_cost,
    check_views,
    cross_views,
    parse_view,
    resolve_views,
    view_cost,
)

ABC = ["a", "b", "c"]
CROSS = ["cross:a-b", "cross:a-c", "cross:b-c"]


# --- grammar -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "pairs"),
    [
        ("self", {(0, 0), (1, 1), (2, 2)}),
        ("full", {(i, j) for i in range(3) for j in range(3)}),
        ("cross:a-c", {(0, 2), (2, 0)}),
        ("cross:c-a", {(0, 2), (2, 0)}),
        ("a>c", {(0, 2)}),
        ("c>a", {(2, 0)}),
        ("b>b", {(1, 1)}),
        ("self:b", {(1, 1)}),
        ("self:a+b>c", {(0, 0), (1, 2)}),
        (" self:a +\tcross:b-c ", {(0, 0), (1, 2), (2, 1)}),
        ("self+cross:a-b+self", {(0, 0), (1, 1), (2, 2), (0, 1), (1, 0)}),
        ("full+a>b", {(i, j) for i in range(3) for j in range(3)}),
    ],
)
def test_grammar(view: str, pairs: set[tuple[int, int]]) -> None:
    assert parse_view(view, ABC) == frozenset(pairs)


def test_segments_may_have_the_names_of_terms() -> None:
    assert parse_view("self>full", ["self", "full"]) == {(0, 1)}
    assert parse_view("self:self", ["self", "full"]) == {(0, 0)}
    assert parse_view("self", ["self", "full"]) == {(0, 0), (1, 1)}


@pytest.mark.parametrize("view", ["self", "cross:a-b", "a>b", "self:a", "full"])
def test_a_global_segment_sees_and_is_seen_by_all_in_every_view(view: str) -> None:
    names = ["cls", "a", "b"]
    everywhere = {(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)}
    without = {(i + 1, j + 1) for i, j in parse_view(view, names[1:])}
    assert parse_view(view, names, [True, False, False]) == everywhere | without


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ("sel", r"'sel' is none of self, full, self:a, cross:a-b and a>b; the segments are \['a', 'b', 'c'\]"),
        ("self+", "view 'self\\+': '' is none of"),
        ("", "'' is none of"),
        ("cross:a", "'cross:a' is none of"),
        ("cross:a-b-c", "'cross:a-b-c' is none of"),
        ("a>b>c", "'a>b>c' is none of"),
        ("a-b", "'a-b' is none of"),
        ("half+self", "'half' is none of"),
        ("cross:a-d", r"view 'cross:a-d' names the segment 'd'; the segments are \['a', 'b', 'c'\]"),
        ("self+x>a", "names the segment 'x'"),
        ("self:A", "names the segment 'A'"),
        ("cross:b-b", "two different segments; write self:b"),
    ],
)
def test_what_a_view_cannot_be(view: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_view(view, ABC)
    with pytest.raises(ValueError, match=message):
        check_views([["self", view]], ABC)
    with pytest.raises(ValueError, match=message):
        resolve_views([["self", view]], 1, 2, ABC)


@pytest.mark.parametrize("view", [3, None, ["self"], {(0, 0)}])
def test_a_view_is_a_string(view: object) -> None:
    with pytest.raises(ValueError, match="must be a string such as 'self'"):
        parse_view(view, ABC)  # type: ignore[arg-type]


# --- presets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "row"),
    [
        ("full", ["full"] * 5),
        ("self", ["self"] * 5),
        ("cross", [*CROSS, *CROSS[:2]]),
        ("round_robin", ["self", *CROSS, "self"]),
        ("half", ["self", "self", *CROSS]),
        (" half ", ["self", "self", *CROSS]),
        ("a>b", ["a>b"] * 5),
        ("self+a>b", ["self+a>b"] * 5),
    ],
)
def test_presets_that_are_the_same_in_all_layers(preset: str, row: list[str]) -> None:
    assert resolve_views(preset, 3, 5, ABC) == [row] * 3


def test_rows_of_a_table_are_independent_of_each_other() -> None:
    for preset in ("half", "low_self(2)", "a>b"):
        table = resolve_views(preset, 3, 4, ABC)
        table[0][0] = "changed"
        assert table[1][0] != "changed"


def test_random_views_follow_their_seed() -> None:
    table = resolve_views("random(3)", 6, 8, ABC)
    assert table == resolve_views("random(3)", 6, 8, ABC)
    assert table != resolve_views("random(4)", 6, 8, ABC)
    assert {view for row in table for view in row} == {"self", *CROSS}
    assert len({tuple(row) for row in table}) > 1
    assert resolve_views("random", 6, 8, ABC) == resolve_views("random(0)", 6, 8, ABC)


def test_random_views_are_the_same_everywhere() -> None:
    """A seed means one table, whatever the release of Python: written down, not computed anew."""
    expected = [["cross:a-b", "self", "cross:a-b", "self"], ["self", "self", "cross:a-b", "self"]]
    assert resolve_views("random(7)", 2, 4, ["a", "b"]) == expected


def test_low_layers_look_at_themselves_and_the_others_draw() -> None:
    table = resolve_views("low_self(2)", 5, 8, ABC)
    assert table[:2] == [["self"] * 8] * 2
    assert table[2:] == resolve_views("random(0)", 3, 8, ABC)
    assert resolve_views("low_self(2, 9)", 5, 8, ABC)[2:] == resolve_views("random(9)", 3, 8, ABC)
    assert resolve_views("low_self(0)", 5, 8, ABC) == resolve_views("random", 5, 8, ABC)
    assert resolve_views("low_self(5)", 5, 8, ABC) == [["self"] * 8] * 5


@pytest.mark.parametrize(
    "preset", ["full", "self", "cross", "round_robin", "half", "random", "random(3)", "low_self(1)", "low_self(1, 2)"]
)
def test_with_one_modality_everything_is_self(preset: str) -> None:
    assert resolve_views(preset, 2, 3, ["a"]) == [["self"] * 3] * 2
    # A global segment is none of the modalities.
    assert resolve_views(preset, 2, 3, ["cls", "a"], [True, False]) == [["self"] * 3] * 2


def test_presets_leave_global_segments_out() -> None:
    is_global = [True, False, False, False]
    assert resolve_views("cross", 1, 3, ["cls", *ABC], is_global) == [CROSS]
    assert resolve_views("round_robin", 1, 4, ["cls", *ABC], is_global) == [["self", *CROSS]]


@pytest.mark.parametrize("preset", ["full", "self", "cross", "round_robin", "half", "random(1)", "low_self(1)"])
def test_presets_make_views_of_the_grammar(preset: str) -> None:
    table = resolve_views(preset, 3, 7, ABC)
    assert resolve_views(table, 3, 7, ABC) == table
    assert [len(row) for row in table] == [7] * 3


@pytest.mark.parametrize("preset", ["low_self", "random(1, 2)"])
def test_presets_with_the_wrong_numbers(preset: str) -> None:
    with pytest.raises(ValueError, match=r"is not complete; the presets are.*random\(seed\), low_self\(k\)"):
        resolve_views(preset, 3, 4, ABC)


def test_more_low_layers_than_layers() -> None:
    with pytest.raises(ValueError, match=r"'low_self\(4\)' asks for self views in 4 layers; the model has 3"):
        resolve_views("low_self(4)", 3, 4, ABC)


@pytest.mark.parametrize("preset", ["rond_robin", "random(-1)", "low_self(x)", "random(1,2,3)", "self()"])
def test_an_unknown_preset_lists_the_presets(preset: str) -> None:
    with pytest.raises(ValueError, match=r"is none of.*The presets are full, self, cross, round_robin, half, random"):
        resolve_views(preset, 3, 4, ABC)
    with pytest.raises(ValueError, match="The presets are"):
        check_views(preset, ABC)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([["self"] * 4] * 2, "has 2 rows of 4 views; the model has 3 layers of 4 heads"),
        ([["self"] * 5] * 3, "has 3 rows of 5 views; the model has 3 layers of 4 heads"),
        ([["self"] * 4, ["self"] * 4, ["self"] * 3], "has 3 rows of 3 or 4 views"),
        ([], "has 0 rows of no views"),
        ([[], [], []], "has 3 rows of 0 views"),
    ],
)
def test_a_table_of_another_shape_shows_both(table: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_views(table, 3, 4, ABC)


def test_cross_views_are_all_pairs_in_order() -> None:
    assert cross_views(ABC) == CROSS
    assert cross_views(["a"]) == []


# --- costs -------------------------------------------------------------------------------------------------------


def test_costs_count_pairs_of_tokens() -> None:
    lengths = [5, 2, 3]
    assert view_cost(parse_view("full", ABC), lengths) == 100
    assert view_cost(parse_view("self", ABC), lengths) == 25 + 4 + 9
    assert view_cost(parse_view("cross:a-c", ABC), lengths) == 30
    assert view_cost(parse_view("a>c", ABC), lengths) == 15
    assert view_cost(frozenset(), lengths) == 0
    assert bottleneck_cost(lengths, 4) == 81 + 36 + 49
    assert bottleneck_cost(lengths, 0) == view_cost(parse_view("self", ABC), lengths)


def test_a_global_segment_costs_what_it_sees_and_gets_no_bottleneck() -> None:
    lengths, is_global = [1, 5, 3], [True, False, False]
    seen = view_cost(parse_view("self", ["cls", "a", "b"], is_global), lengths)
    assert seen == 25 + 9 + 1 + 2 * 8
    assert bottleneck_cost(lengths, 2, is_global) == 49 + 25 + 1 + 2 * 12


@st.composite
def papers_views(draw: st.DrawFn) -> tuple[list[int], list[str], list[str]]:
    """Lengths of m ≥ 2 modalities, their names, and heads with views of the paper's two families."""
    lengths = draw(st.lists(st.integers(1, 3000), min_size=2, max_size=6), label="lengths")
    if draw(st.booleans(), label="equal"):
        lengths = [lengths[0]] * len(lengths)
    names = [f"m{i}" for i in range(len(lengths))]
    views = draw(st.lists(st.sampled_from(["self", *cross_views(names)]), min_size=1, max_size=12), label="views")
    return lengths, names, views


@settings(max_examples=300, deadline=None)
@given(papers_views(), st.data())
def test_the_papers_ordering(case: tuple[list[int], list[str], list[str]], data: st.DataObject) -> None:
    """C_LoCoMT ≤ C_self < C_bottleneck < C_full, summed over heads; and for every single head."""
    lengths, names, views = case
    segments, between = len(lengths), 2 * sum(a * b for a, b in combinations(lengths, 2))

    def condition(tokens: int) -> bool:
        return 2 * tokens * sum(lengths) + segments * tokens**2 < between

    most = 0
    while condition(most + 1) and most < 64:
        most += 1
    assume(most > 0)
    tokens = data.draw(st.integers(1, most), label="bottleneck tokens")

    per_head = [view_cost(parse_view(view, names), lengths) for view in views]
    own = view_cost(parse_view("self", names), lengths)
    full = view_cost(parse_view("full", names), lengths)
    assert own == sum(length**2 for length in lengths) and full == sum(lengths) ** 2
    assert all(cost <= own for cost in per_head)
    assert sum(per_head) <= len(views) * own
    assert own < bottleneck_cost(lengths, tokens) < full


@settings(max_examples=300, deadline=None)
@given(papers_views())
def test_equality_exactly_where_the_theorem_says(case: tuple[list[int], list[str], list[str]]) -> None:
    lengths, names, views = case
    cost = sum(view_cost(parse_view(view, names), lengths) for view in views)
    is_equal = cost == len(views) * view_cost(parse_view("self", names), lengths)
    assert is_equal == (set(views) == {"self"} or (len(lengths) == 2 and lengths[0] == lengths[1]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=5), st.integers(1, 64))
def test_the_bottleneck_is_cheaper_than_full_exactly_under_the_condition(lengths: list[int], tokens: int) -> None:
    between = 2 * sum(a * b for a, b in combinations(lengths, 2))
    condition = 2 * tokens * sum(lengths) + len(lengths) * tokens**2 < between
    assert (bottleneck_cost(lengths, tokens) < sum(lengths) ** 2) == condition


def test_the_counter_example_outside_of_the_condition() -> None:
    lengths = [10, 10]
    assert view_cost(parse_view("self", ["a", "b"]), lengths) == 200
    assert view_cost(parse_view("full", ["a", "b"]), lengths) == 400
    assert bottleneck_cost(lengths, 10) == 800

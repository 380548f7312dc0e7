"""Results as markdown and LaTeX."""

from __future__ import annotations

import re
from typing import Any

import pytest

from helpers.compared import draw_values, make_results, make_row, make_times
from hf_lam.comparing.tables import latex_table, markdown_table

SEEDS = 8


def full(**more: Any) -> dict[str, Any]:
    return make_row("full", draw_values(0.7, 0.002, SEEDS, 0), **more)


def lines_of(table: str) -> dict[str, list[str]]:
    """The rows of the first table of a markdown text, by their names, with the cells; that of the names is ''."""
    rows: dict[str, list[str]] = {}
    for line in table.splitlines():
        if line.startswith("|"):
            name, *cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            rows.setdefault(name, cells)
    return rows


def cell(table: str, row: str, column: str) -> str:
    rows = lines_of(table)
    (place,) = [index for index, name in enumerate(rows[""]) if name == column]
    return rows[row][place]


def test_what_a_row_says() -> None:
    rows = [
        make_row("full", dict.fromkeys(range(6), 0.7), flops=2.5e9, parameters=22_700_000),
        make_row(
            "lam", {seed: 0.71 + seed / 1000 for seed in range(6)}, flops=2.75e9, parameters=22_712_288, added=12_288
        ),
    ]
    table = markdown_table(make_results(rows), make_times(rows, batch=16))
    assert table.startswith("## A study\n")
    assert cell(table, "full", "validation accuracy, % (n)") == "70.00 ± 0.00 (6)"
    assert cell(table, "full", "difference from full") == "–"
    assert "71.25 ± 0.19 (6)" in cell(table, "lam", "validation accuracy, % (n)")
    assert re.fullmatch(r"\+1\.25 \[\+1\.0\d, \+1\.4\d\]", cell(table, "lam", "difference from full"))
    assert cell(table, "lam", "verdict") == "better"
    assert cell(table, "lam", "parameters") == "22,712,288" and cell(table, "lam", "added") == "12,288"
    assert cell(table, "lam", "GFLOPs") == "2.75" and cell(table, "lam", "GFLOPs of attention") == "0.275"
    assert cell(table, "lam", "inference, ms") == "27.5 (26.1–30.3)"
    assert cell(table, "lam", "training step, ms") == "82.5 (78.4–90.8)"
    assert cell(table, "lam", "training, s") == "62.5"
    assert "test data have not been touched" in table
    assert "batch of 16, a processor, 2 threads" in table


def test_columns_that_say_nothing_are_left_out() -> None:
    rows = [full(), make_row("other", draw_values(0.7, 0.01, SEEDS, 1))]
    for row in rows:
        row |= {"flops": None, "attention_flops": None}
    table = markdown_table(make_results(rows), {})
    columns = ["validation accuracy, % (n)", "difference from full", "verdict", "parameters"]
    assert lines_of(table)[""] == columns
    assert "ms" not in table and "FLOPs" not in table


def test_parameters_that_train_are_named_where_some_do_not() -> None:
    rows = [full(), make_row("frozen", draw_values(0.7, 0.01, SEEDS, 1), trainable_parameters=10)]
    assert cell(markdown_table(make_results(rows), {}), "frozen", "trained") == "10"


def test_test_data_take_the_place_of_validation_data() -> None:
    rows = [full(), make_row("other", draw_values(0.7, 0.01, SEEDS, 1))]
    before, after = (markdown_table(make_results(rows, tested=tested), {}) for tested in (False, True))
    assert "test accuracy, % (n)" in lines_of(after)[""] and "not been touched" not in after
    of_test = float(cell(after, "full", "test accuracy, % (n)").split()[0])
    assert of_test == pytest.approx(
        float(cell(before, "full", "validation accuracy, % (n)").split()[0]) - 1, abs=0.011
    )


def test_the_best_is_bold_only_when_it_is_told_apart() -> None:
    rows = [
        full(),
        make_row("better", draw_values(0.8, 0.002, SEEDS, 1)),
        make_row("worse", draw_values(0.6, 0.002, SEEDS, 2)),
    ]
    assert re.findall(r"\| (\w+) \| \*\*", markdown_table(make_results(rows), {})) == ["better"]
    assert re.findall(r"(\w+) & \\textbf\{", latex_table(make_results(rows), {})) == ["better"]
    near = [
        *rows,
        make_row(
            "near",
            {run["seed"]: run["metrics"]["eval_accuracy"] + (-1) ** run["seed"] * 1e-4 for run in rows[1]["runs"]},
        ),
    ]
    assert "**" not in markdown_table(make_results(near), {})
    # Of a loss, the least.
    assert re.findall(r"\| (\w+) \| \*\*", markdown_table(make_results(rows, greater_is_better=False), {})) == [
        "worse"
    ]


def test_verdicts_follow_the_direction_of_the_metric() -> None:
    rows = [full(), make_row("less", draw_values(0.6, 0.002, SEEDS, 1))]
    for greater, verdict in ((True, "worse"), (False, "better")):
        assert cell(markdown_table(make_results(rows, greater_is_better=greater), {}), "less", "verdict") == verdict


def test_few_seeds_have_no_verdict() -> None:
    rows = [make_row(name, draw_values(0.7, 0.01, 3, draw)) for draw, name in enumerate(("full", "half"))]
    table = markdown_table(make_results(rows), {})
    assert "verdict" not in lines_of(table)[""]
    assert "Too few seeds to tell: a verdict needs 6." in table and "(Student's)" in table and "bootstrap" not in table
    # One of the rows has enough.
    mixed = [full(), make_row("half", draw_values(0.7, 0.01, 3, 1)), make_row("lam", draw_values(0.7, 0.01, SEEDS, 2))]
    table = markdown_table(make_results(mixed), {})
    assert cell(table, "half", "verdict") == "too few seeds to tell"
    assert "the interval is Student's" in table and "(paired bootstrap)" in table


def test_one_seed_has_no_spread() -> None:
    rows = [make_row("full", {3: 0.5}), make_row("half", {3: 0.625})]
    table = markdown_table(make_results(rows), {})
    assert cell(table, "half", "validation accuracy, % (n)") == "62.50 (1)"
    assert cell(table, "half", "difference from full") == "+12.50"
    assert "±" not in table and "interval" not in table


def test_failed_runs_are_counted_and_named() -> None:
    errors = {0: "ValueError: bad | data", 1: "Traceback (most recent call last):\n  File x\nMemoryError: too large\n"}
    rows = [full(), make_row("half", {**draw_values(0.7, 0.01, SEEDS, 1), 2: float("nan")}, errors=errors)]
    rows[1]["runs"][3]["metrics"] = {"eval_loss": 1.0}
    table = markdown_table(make_results(rows), {})
    assert "4 of 16 runs failed" in table
    assert cell(table, "half", "validation accuracy, % (n)").endswith(f"({SEEDS - 4})")
    for line in (
        r"- half, seed 0: ValueError: bad \| data",
        "- half, seed 1: MemoryError: too large",
        "- half, seed 2: its eval_accuracy is nan",
        "- half, seed 3: it gave no eval_accuracy",
    ):
        assert line in table.splitlines()


def test_runs_that_failed_alike_are_named_once_and_rows_without_a_metric_stay() -> None:
    rows = [full(), make_row("half", dict.fromkeys(range(SEEDS)), errors=dict.fromkeys(range(SEEDS), "no memory"))]
    rows[1] |= dict.fromkeys(
        ("parameters", "trainable_parameters", "mechanism_parameters", "flops", "attention_flops")
    )
    table = markdown_table(make_results(rows), {})
    assert set(lines_of(table)["half"]) == {"–"}
    assert f"- half, seeds {', '.join(map(str, range(SEEDS)))}: no memory" in table
    latex_table(make_results(rows), {})


def test_a_baseline_without_runs_leaves_no_differences() -> None:
    rows = [make_row("full", {0: None}, errors={0: "gone"}), make_row("half", {0: 0.5})]
    table = markdown_table(make_results(rows), {})
    assert "difference from full" not in lines_of(table)[""]


@pytest.mark.parametrize(
    ("metric", "values", "shown"),
    [
        ("mse", {0: 12.3456}, "12.35"),
        ("loss", {0: 0.693147}, "0.6931"),
        ("cosine", {0: 0.98765}, "0.9877"),
        ("f1", {0: 0.5}, "50.00"),
        ("map", {0: 0.5}, "50.00"),
        ("t2v_R@5", {0: 0.25}, "25.00"),
        ("recall_at_1", {0: 0.25}, "25.00"),
        # Somebody's own, in percent already.
        ("accuracy", {0: 76.6}, "76.60"),
        ("samples_per_second", {0: 12345.6}, "12,346"),
    ],
)
def test_only_fractions_that_are_read_so_are_in_percent(metric: str, values: dict[int, float], shown: str) -> None:
    rows = [make_row("full", values, metric=metric)]
    table = markdown_table(make_results(rows, metric=metric), {})
    (cells,) = [cells for name, cells in lines_of(table).items() if name == "full"]
    assert cells[0] == f"{shown} (1)"
    assert (", %" in lines_of(table)[""][0]) == (shown.endswith(".00") and values[0] < 1)


def test_what_varies_has_a_table_each_and_a_baseline_each() -> None:
    rows = [
        make_row(
            f"{name}, samples={samples}",
            draw_values(mean + samples / 1e5, 0.002, SEEDS, draw),
            point={"samples": samples},
            group=name,
        )
        for name, mean, draw in (("full", 0.6, 0), ("half", 0.62, 1))
        for samples in (1000, 16000)
    ]
    table = markdown_table(make_results(rows), {})
    assert re.findall(r"^### (.+)$", table, re.MULTILINE) == ["samples = 1,000", "samples = 16,000"]
    differences = re.findall(r"\| half \| [^|]+ \| \+(\d\.\d+) ", table)
    assert len(differences) == 2 and all(float(value) == pytest.approx(2, abs=0.3) for value in differences)
    latex = latex_table(make_results(rows), {})
    assert latex.count(r"\midrule") == 2 and r"\emph{samples = 16,000}" in latex


def test_what_a_search_found_is_a_column() -> None:
    rows = [
        full(found={"learning_rate": 3e-4}),
        make_row("half", draw_values(0.7, 0.01, SEEDS, 1), found={"learning_rate": 1e-3}),
    ]
    results = make_results(rows)
    results["search"] = [{"row": "full", "value": value, "seeds": [100], "mean": 0.5} for value in (3e-4, 1e-3)]
    table = markdown_table(results, {})
    assert cell(table, "half", "learning_rate") == "0.001"
    said = "learning_rate: chosen for each row among 0.0003, 0.001 on validation data, with seeds 100."
    assert f"{said}\n" in table
    results["search"].append({"row": "full", "value": 3e-3, "seeds": [100], "mean": 0.5})
    table = markdown_table(results, {})
    assert "Of full it is the smallest or the largest of these: what lies beyond may be better." in table
    results["rows"][1]["found"] = {"learning_rate": 3e-3}
    assert "Of all rows it is the smallest" in markdown_table(results, {})


def test_a_row_that_could_not_be_timed_says_why() -> None:
    rows = [full(), *(make_row(name, draw_values(0.7, 0.01, SEEDS, 1)) for name in ("half", "lam"))]
    times = make_times(rows)
    for name in ("half", "lam"):
        times["rows"][name] = {"error": "no such class", "train_seconds": {"0": 3.0}}
    del times["rows"]["full"]["step_ms"]
    table = markdown_table(make_results(rows), times)
    assert cell(table, "half", "inference, ms") == "–" and cell(table, "half", "training, s") == "3.00"
    assert "- Not timed: half, lam: no such class" in table
    assert "No training step of full is timed" in table and "training step, ms" not in lines_of(table)[""]


def test_names_that_markdown_and_latex_would_read_otherwise() -> None:
    name = "a|b_c *d* <e> 50% & $x$ #1 {f} ~^\\ λ≤2, _g_ [h](i)"
    rows = [full(), make_row(name, draw_values(0.7, 0.01, SEEDS, 1))]
    results = make_results(rows, title="100 % & more_")
    (escaped,) = [line for line in lines_of(markdown_table(results, {})) if line.startswith("a")]
    assert escaped == r"a\|b_c \*d\* \<e> 50% & $x$ #1 {f} \~^\\ λ≤2, \_g\_ [h\](i)"
    latex = latex_table(results, {})
    assert (
        r"a$|$b\_c *d* $<$e$>$ 50\% \& \$x\$ \#1 \{f\} \textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"$\lambda$$\leq$2, \_g\_ [h](i) & "
    ) in latex
    assert r"\caption{100 \% \& more\_}" in latex


def test_latex_is_whole() -> None:
    rows = [
        full(added=3),
        make_row("half", draw_values(0.71, 0.01, SEEDS, 1)),
        make_row("[c]", draw_values(0.7, 0.01, SEEDS, 2)),
    ]
    latex = latex_table(make_results(rows), make_times(rows))
    (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", latex)
    body = [line for line in latex.splitlines() if line.endswith(r"\\") and "&" in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(columns) - 1}
    assert [line for line in ("toprule", "midrule", "bottomrule") if rf"\{line}" in latex] == [
        "toprule",
        "midrule",
        "bottomrule",
    ]
    assert latex.count("{") - latex.count(r"\{") == latex.count("}") - latex.count(r"\}")
    assert latex.count(r"\begin") == latex.count(r"\end") and "±" not in latex and "−" not in latex
    # A bracket at the beginning of a line would be an argument of the `\\` before it.
    assert "\n{}[c] & " in latex

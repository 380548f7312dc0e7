"""Compare rows of a plan on the user's own data: runs, intervals, tables and plots."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .plan import read_plan

if TYPE_CHECKING:
    from .results import Comparison

__all__ = ["compare"]


def compare(
    plan: str | os.PathLike[str] | Mapping[str, Any],
    output_dir: str | os.PathLike[str],
    *,
    seeds: int | Sequence[int] | None = None,
    rows: Sequence[str] | None = None,
    jobs: int = 1,
    test: bool = False,
    keep_models: bool = False,
    check: bool = True,
    timing: bool = True,
) -> Comparison:
    """Run every row of a plan with every seed, and write what each is worth and what it costs.

    `output_dir` gets `results.json`, `times.json`, tables (`results.md`, `results.tex`), plots, and a folder for every
    run. Called again with the same, finished runs are taken as they are, and what is missing is done. A run that fails
    is in the results with its reason; the others go on.

    Args:
        plan: a YAML file, or a mapping with the same keys; `docs/compare.md` has them all.
        output_dir: a new folder, or the folder of an earlier start of the same plan.
        seeds: seeds to use in place of the plan's, or their number.
        rows: names of the rows to run, besides the baseline and the rows that they need; all unless given.
        jobs: number of runs that go on at the same time.
        test: at the end, evaluate every run on the test data, too.
        keep_models: leave the trained models in the folders of their runs.
        check: begin by making every row ready to train, so that what cannot work is said before anything is trained.
        timing: measure inference and training steps of every row at the end.

    Returns:
        The contents of `results.json`, as a dictionary; `print` shows them as tables, and so does a notebook.

    Raises:
        ValueError: before anything is trained: for an invalid plan, naming line and key; for rows that their
            script refuses; for a metric that it does not give; for a folder with something else in it.
    """
    read = read_plan(plan, seeds=seeds, rows=rows)
    # What follows takes seconds to import; a bad plan is told at once.
    from .running import run_plan

    return run_plan(read, Path(output_dir), jobs=jobs, test=test, keep_models=keep_models, check=check, timing=timing)

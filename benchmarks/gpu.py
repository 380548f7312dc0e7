"""The mechanisms on a GPU: first whether they compute the right thing there, then how fast, and in how much memory.

The checks of all parts come first. If one fails, the script says which and ends with status 1, without any times. What
fails later is named, too, and the rest goes on. Run `python benchmarks/gpu.py --help`.

Every contender of a row runs once in every round. A figure is the median of the rounds, and the spread is the distance
between the quartiles, relative to the median; of a row, the largest. With `--device cpu --quick` the same code runs on
tiny inputs, to be tested: such times say nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import config as dynamo_settings
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

from attention import (
    BASELINE,
    GRIDS,
    GROWING_STEPS,
    LENGTHS,
    SEGMENTS,
    attend_step,
    environment,
    half_views,
    lam,
    layer_steps,
    make_inputs,
    stock,
    table,
    view_steps,
)
from device_timing import OUT_OF_MEMORY, Figure, Step, Stopwatch, describe_error, peak_memory, spread_of, time_in_turn
from flex_views import attend_flex_views, flex_views_obstacle
from gpu_checks import CHECKS, Check, failures
from gpu_models import SHAPES, STOCK, Shape, compiled, make_models, model_step, tiny_shapes

from hf_lam.modeling.lam_attention_hf_lam import flex_obstacle
from hf_lam.modeling.locomt_views_hf_lam import view_cost

LAM = {
    BASELINE: stock,
    "chunked": lam(implementation="chunked"),
    "flex": lam(implementation="flex_attention"),
    "eager": lam(implementation="eager"),
}
LONGER = 4096
MEMORY_LENGTHS = (4096, 16384)
DTYPES = ("bfloat16", "float16", "float32")
DIRECTIONS = ("forward", "forward+backward")
NO_MEMORY_ON_CPU = "peak memory is measured on CUDA; benchmarks/attention.py measures it on a CPU"


@dataclass
class Row:
    """Contenders of one case.

    case: what distinguishes it from other rows of its part.
    figures: milliseconds by contender, with quartiles, or MiB, as `median`.
    ratio: median over that of the baseline.
    skipped: contenders without figures, and why.
    """

    kind: str
    case: dict[str, Any]
    figures: dict[str, Figure] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


class Bench:
    """The settings, and what was measured so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.watch = Stopwatch(args.device)
        self.began = time.monotonic()
        self.slowest: dict[str, float] = {}
        self.rows: list[Row] = []
        self.left_out: list[str] = []
        self.failed: list[str] = []

    def options(self, dtype: str, batch: int, masks: int = 1) -> argparse.Namespace:
        """What the functions of benchmarks/attention.py ask for."""
        return argparse.Namespace(**{**vars(self.args), "dtype": dtype, "batch": batch, "masks": masks})

    def time_row(
        self,
        kind: str,
        case: dict[str, Any],
        make_steps: Callable[[], tuple[dict[str, Step], dict[str, str]]],
        baseline: str,
    ) -> None:
        """Time a row, unless the time left is less than the slowest row of its kind took.

        make_steps: makes the contenders, and gives the reasons of those that cannot run.
        """
        start = time.monotonic()
        if start + self.slowest.get(kind, 0.0) > self.began + 60 * self.args.minutes:
            self.left_out.append(name_of(kind, case))
            return
        try:
            steps, skipped = make_steps()
            figures, stopped = time_in_turn(steps, self.watch, self.args.rounds, self.args.warmup)
        except Exception as error:
            figures, skipped, stopped = {}, {}, {"all": describe_error(error)}
        self.slowest[kind] = max(self.slowest.get(kind, 0.0), time.monotonic() - start)
        self.add(Row(kind, case, figures, {}, skipped | stopped), baseline)
        # Other errors than this one are news.
        self.failed += [f"{name_of(kind, case)}, {n}: {x}" for n, x in stopped.items() if x != OUT_OF_MEMORY]

    def add(self, row: Row, baseline: str) -> None:
        if baseline in row.figures:
            least = row.figures[baseline]["median"]
            row.ratio = {name: figure["median"] / least for name, figure in row.figures.items() if least > 0}
        self.rows.append(row)


def name_of(kind: str, case: dict[str, Any]) -> str:
    return " ".join(map(str, (kind, *case.values())))


# --- the parts -------------------------------------------------------------------------------------------------------


def run_lam(bench: Bench) -> None:
    """`lam_attention` against stock SDPA, which has no mask."""
    for dtype in bench.args.dtypes:
        for length in bench.args.lengths:
            for direction in DIRECTIONS:
                case = {"tokens": length, "dtype": dtype, "direction": direction}
                bench.time_row("lam", case, partial(_lam_steps, bench, length, dtype, direction), BASELINE)
    for length in bench.args.memory_lengths:
        for direction in DIRECTIONS:
            _measure_memory(bench, length, direction)


def _lam_steps(
    bench: Bench, length: int, dtype: str, direction: str, batch: int | None = None
) -> tuple[dict[str, Step], dict[str, str]]:
    args = bench.options(dtype, batch or bench.args.batch)
    inputs = make_inputs(length, args, grad=direction == "forward+backward")
    weights = torch.ones_like(inputs[2])
    obstacle = flex_obstacle(inputs[0], inputs[2], 0.0)
    skipped = {"flex": obstacle} if obstacle else {}

    def step(run: Callable[..., Tensor]) -> None:
        out = run(*inputs, None)
        if direction == "forward+backward":
            torch.autograd.grad(out, inputs, weights, allow_unused=True)

    return {name: partial(step, run) for name, run in LAM.items() if name not in skipped}, skipped


def _measure_memory(bench: Bench, length: int, direction: str) -> None:
    """MiB above the inputs, the mask among them; output and gradients count."""
    row = Row("memory", {"tokens": length, "dtype": DTYPES[0], "direction": direction})
    if bench.args.device == "cpu":
        row.skipped = {"all": NO_MEMORY_ON_CPU}
    else:
        steps, row.skipped = _lam_steps(bench, length, DTYPES[0], direction, batch=1)
        for name, step in steps.items():
            mib = peak_memory(step)
            if mib is None:
                row.skipped[name] = OUT_OF_MEMORY
            else:
                row.figures[name] = {"median": mib}
    bench.add(row, BASELINE)


def run_locomt(bench: Bench) -> None:
    """Half of the heads `self` and half `cross`, against full attention."""
    for lengths in bench.args.segments:
        for direction in DIRECTIONS:
            views = half_views(len(lengths), bench.args.heads)
            flops = sum(view_cost(view, lengths) for view in views) / len(views) / sum(lengths) ** 2
            case = {"segments": "+".join(map(str, lengths)), "FLOPs ratio": f"{flops:.2f}"}
            case |= {"dtype": DTYPES[0], "direction": direction}
            bench.time_row("locomt", case, partial(_view_steps, bench, lengths, direction), "full")


def _view_steps(bench: Bench, lengths: tuple[int, ...], direction: str) -> tuple[dict[str, Step], dict[str, str]]:
    """Those of benchmarks/attention.py, full attention by the flash kernel, and views by flex_attention."""
    args = bench.options(DTYPES[0], bench.args.batch)
    backward = direction == "forward+backward"
    inputs = make_inputs(sum(lengths), args, grad=backward)[:3]
    obstacle = flex_views_obstacle(args.device, backward)
    steps: dict[str, Step] = dict(view_steps(lengths, direction, args))
    steps["flash"] = partial(attend_step, _attend_flash, inputs)
    if obstacle is None:
        flex = attend_flex_views(lengths, half_views(len(lengths), args.heads), args.device)
        steps["flex blocks"] = partial(attend_step, flex, inputs)
    order = ("full", "flash", "locomt", "flex blocks", "per-head mask", "bottleneck")
    return {name: steps[name] for name in order if name in steps}, {"flex blocks": obstacle} if obstacle else {}


def _attend_flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(query, key, value)


def run_stt(bench: Bench) -> None:
    """A whole attention layer, projections included, against the stock layer; then as a video gets longer."""
    for grid in bench.args.grids:
        for direction in DIRECTIONS:
            _time_layer(bench, grid, direction, bench.args.batch, ("dense", "random"))
    for steps in bench.args.growing_steps:
        _time_layer(bench, (steps, 14, 14), "forward", 1, ("dense",))


def _time_layer(bench: Bench, grid: tuple[int, ...], direction: str, batch: int, variants: tuple[str, ...]) -> None:
    args = bench.options(DTYPES[0], batch)
    case = {"grid": "×".join(map(str, grid)), "batch": batch, "dtype": DTYPES[0], "direction": direction}
    bench.time_row("stt", case, lambda: (dict(layer_steps(grid, direction, args, variants)), {}), BASELINE)


def run_models(bench: Bench) -> None:
    """Whole models with random weights against the stock model: as they are, then compiled, the costliest last."""
    for is_compiled in (False, True):
        for direction in DIRECTIONS:
            for shape in bench.args.shapes:
                how = "compiled" if is_compiled else "eager"
                case = {"model": shape.name, "how": how, "dtype": DTYPES[0], "direction": direction}
                make = partial(_model_steps, bench, shape, is_compiled, direction)
                bench.time_row(f"models {how}", case, make, STOCK)


def _model_steps(
    bench: Bench, shape: Shape, is_compiled: bool, direction: str
) -> tuple[dict[str, Step], dict[str, str]]:
    """The models; a compiled one is compiled and checked in its first call, which is no round that counts."""
    torch.compiler.reset()
    backward = direction == "forward+backward"
    models, inputs = make_models(shape, bench.args.device, getattr(torch, DTYPES[0]))
    steps: dict[str, Step] = {}
    for name, model in models.items():
        model.train(backward)
        call = compiled(model, bench.args.backend) if is_compiled else model
        steps[name] = model_step(model, call, inputs, backward)
    return steps, {}


PARTS: dict[str, Callable[[Bench], None]] = {
    "lam": run_lam,
    "locomt": run_locomt,
    "stt": run_stt,
    "models": run_models,
}


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(rows: list[Row]) -> Iterator[str]:
    """One for every part: milliseconds of the baseline, or MiB, and ratios to it; then what was skipped, and why."""
    kinds = list(dict.fromkeys(row.kind for row in rows))
    for kind in kinds:
        of_kind = [row for row in rows if row.kind == kind]
        names = list(dict.fromkeys(name for row in of_kind for name in row.figures))
        unit = "MiB" if kind == "memory" else "ms"
        head = [*of_kind[0].case, *(f"{name} {unit}" for name in names), *(f"{name} ×" for name in names[1:])]
        lines = [head if kind == "memory" else [*head, "spread"]]
        for row in of_kind:
            cells = [*map(str, row.case.values())]
            cells += [_number(row.figures[name]["median"] if name in row.figures else None, 3) for name in names]
            cells += [_number(row.ratio.get(name), 2) for name in names[1:]]
            if kind != "memory":
                cells.append(f"{max((spread_of(figure) for figure in row.figures.values()), default=0.0):.0%}")
            lines.append(cells)
        reasons = dict.fromkeys(f"{name}: {why}" for row in of_kind for name, why in row.skipped.items())
        yield "\n".join([f"\n{kind}\n", table(lines), *(f"– {reason}" for reason in reasons)])


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}" if value < 1000 else f"{value:.0f}"


# --- the command -----------------------------------------------------------------------------------------------------


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), metavar="PART,PART",
                        help=f"of {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=5, help="rows that would end later are left out, and named")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--size", type=int, default=64, help="head size")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--backend", default="inductor", help="of torch.compile for the whole models")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny inputs and one round, to test this script")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.only if name not in PARTS]
    if unknown:
        parser.error(f"--only takes {', '.join(PARTS)}, separated by commas, got {', '.join(unknown)}.")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device. To test this script without one: --device cpu --quick.")
    args.dtypes, args.lengths, args.memory_lengths = DTYPES, (*LENGTHS, LONGER), MEMORY_LENGTHS
    args.segments, args.grids, args.growing_steps, args.shapes = SEGMENTS, GRIDS, GROWING_STEPS, SHAPES
    if args.quick:
        args.batch, args.heads, args.size, args.rounds, args.warmup, args.backend = 1, 4, 16, 1, 1, "eager"
        args.lengths, args.memory_lengths, args.segments = (17,), (17,), ((6, 5), (4, 3, 9))
        args.grids, args.growing_steps, args.shapes = ((2, 2), (2, 2, 2)), (1,), tiny_shapes()
    return args


def describe(bench: Bench) -> dict[str, Any]:
    args = bench.args
    found = environment(bench.options(DTYPES[0], args.batch))
    found |= {"clock": bench.watch.describe(), "backend": args.backend, "quick": args.quick}
    if args.device == "cuda":
        properties = torch.cuda.get_device_properties()
        found |= {
            "cuda": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }
    return {name: value for name, value in found.items() if name != "dtype"}


def main(arguments: list[str] | None = None) -> int:
    logging.getLogger("hf_lam").setLevel(logging.ERROR)  # that views and STT change the outputs is no news here
    args = parse(arguments)
    torch.manual_seed(0)
    bench = Bench(args)
    results: dict[str, Any] = {"environment": describe(bench), "checks": [], "seconds": {}}
    print("  ".join(f"{key}={value}" for key, value in results["environment"].items()), flush=True)
    # A ninth kernel of one function would run uncompiled, and slowly, without an error.
    limits: dict[str, Any] = {"recompile_limit": 256, "fail_on_recompile_limit_hit": True}
    failed = bench.failed
    with dynamo_settings.patch(limits):
        for name in args.only:
            torch.compiler.reset()
            start = time.monotonic()
            checks = list(CHECKS[name](args.device))
            results["checks"] += [_with_verdict(check) for check in checks]
            results["seconds"][f"{name} checks"] = time.monotonic() - start
            failed += failures(checks)
            print(f"\n{name}: {sum(check.passed for check in checks)} of {len(checks)} checks passed", flush=True)
        if not failed:
            for name in args.only:
                torch.compiler.reset()
                start, first = time.monotonic(), len(bench.rows)
                PARTS[name](bench)
                results["seconds"][name] = time.monotonic() - start
                print("\n".join(tables(bench.rows[first:])), flush=True)
    results |= {"rows": [asdict(row) for row in bench.rows], "left_out": bench.left_out, "failed": failed}
    if bench.left_out:
        print(f"\nleft out, since {args.minutes:g} minutes are over: " + "; ".join(bench.left_out))
    print("\nseconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in results["seconds"].items()))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    if failed:
        print("\nfailed:\n" + "\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


def _with_verdict(check: Check) -> dict[str, Any]:
    return {**check._asdict(), "passed": check.passed}


if __name__ == "__main__":
    sys.exit(main())

"""Time of whole models with each mechanism, over the same model without it: as they are, and compiled.

All models of a shape have random weights, run in one process and take turns in every round; a figure is the median of
the rounds. Run `python benchmarks/models.py --help`.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

from attention import environment
from device_timing import Stopwatch, spread_of, time_in_turn
from gpu_models import STOCK, Shape, compiled, make_models, model_step, tiny_shapes

from hf_lam import LamConfig, inject

SHAPES = (
    Shape("BERT 1×16", 1, 16, {}),
    Shape("BERT 8×128", 8, 128, {}),
    Shape("BERT 1×512", 1, 512, {}),
    Shape("ViT 2×224²", 2, None, {}),
)
LAM_OF_RANK = "lam, rank 8"


def time_models(shape: Shape, dtype: str, direction: str, args: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds of every model, and their ratios to the stock model."""
    if args.layers:
        shape = shape._replace(sizes={**shape.sizes, "num_hidden_layers": args.layers})
    models, inputs = make_models(shape, args.device, getattr(torch, dtype))
    models[LAM_OF_RANK] = inject(copy.deepcopy(models[STOCK]), LamConfig(rank=8)).to(getattr(torch, dtype))
    steps = {name: _make_step(model.eval(), inputs, direction, args.compile) for name, model in models.items()}
    times, skipped = time_in_turn(steps, Stopwatch(args.device), args.rounds, args.warmup)
    if skipped:
        raise RuntimeError(f"{shape.name}, {dtype}, {direction}: {skipped}")
    ratios = {name: figure["median"] / times[STOCK]["median"] for name, figure in times.items()}
    spreads = {name: spread_of(figure) for name, figure in times.items()}
    case = {"shape": shape.name, "dtype": dtype, "direction": direction}
    return {**case, "ms": times, "spread": spreads, "ratio": ratios}


def _make_step(model: nn.Module, inputs: dict[str, Tensor], direction: str, is_compiled: bool) -> Callable[[], Any]:
    call: Callable[..., Any] = compiled(model, "inductor") if is_compiled else model
    return model_step(model, call, inputs, backward=direction == "forward+backward")


def row_of(case: dict[str, Any]) -> str:
    names = [name for name in case["ratio"] if name != STOCK]
    ratios = "  ".join(f"{name} {case['ratio'][name]:.2f}×" for name in names)
    place = f"{case['shape']:12} {case['dtype']:9} {case['direction']:17}"
    return f"{place} stock {case['ms'][STOCK]['median']:.1f} ms (spread {case['spread'][STOCK]:.0%})  {ratios}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [shape.name for shape in SHAPES]
    parser.add_argument("--shapes", nargs="+", default=names, choices=names, help="batch × tokens, or × pixels")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--directions", nargs="+", default=["forward"], choices=["forward", "forward+backward"])
    parser.add_argument("--compile", action="store_true", help="all models compiled, the stock one too")
    parser.add_argument("--layers", type=int, help="of each model; 12 unless given")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny models: whether it runs")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()
    args.device = "cpu"
    return args


def main() -> None:
    logging.getLogger("hf_lam").setLevel(logging.ERROR)  # that a new pure STT changes the outputs is no news here
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    chosen = tiny_shapes() if args.quick else [shape for shape in SHAPES if shape.name in args.shapes]
    facts = environment(args, ("compile", "layers", "rounds", "warmup"))
    print("  ".join(f"{key}={value}" for key, value in facts.items()))
    cases = []
    for shape in chosen:
        for dtype in args.dtypes:
            for direction in args.directions:
                cases.append(time_models(shape, dtype, direction, args))
                print(row_of(cases[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"environment": facts, "cases": cases}, indent=2) + "\n")


if __name__ == "__main__":
    main()

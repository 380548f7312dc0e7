"""Time and memory of the mechanisms' attention functions, against torch's own scaled_dot_product_attention.

Every contender of a case runs in the same process, one after the other in every round, so that a busy machine slows
all of them alike; a figure is the median of the rounds. Run `python benchmarks/attention.py --help`.
"""

import argparse
import json
import logging
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel, ViTConfig, ViTModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

from hf_lam.injecting import inject
from hf_lam.modeling.attention_pass_hf_lam import ForwardPass
from hf_lam.modeling.injection_hf_lam import injection_of
from hf_lam.modeling.lam_attention_hf_lam import lam_attention
from hf_lam.modeling.locomt_attention_hf_lam import locomt_attention, seen_pairs
from hf_lam.modeling.locomt_layout_hf_lam import Layout
from hf_lam.modeling.locomt_views_hf_lam import View, bottleneck_cost, parse_view, resolve_views, view_cost
from hf_lam.modeling.stand_ins_hf_lam import PASS
from hf_lam.modeling.stt_config_hf_lam import SttConfig

LENGTHS = (197, 512, 1568)  # ViT (224 pixels, patches of 16), BERT, VideoMAE (16 frames)
MEMORY_LENGTH = 4096
SEGMENTS = ((196, 196), (1568, 512), (784, 784, 784), (256, 196, 1568))  # tokens of each modality
BOTTLENECK_TOKENS = 4
GRIDS = ((14, 14), (8, 14, 14))  # of a ViT, which has [CLS] besides, and a VideoMAE
GROWING_STEPS = (4, 8, 16, 32)  # of a video, each 14 × 14
BASELINE = "sdpa"
OPTIONS = ("batch", "heads", "size", "dtype", "rounds", "warmup")
Contender = Callable[..., Tensor]


def stock(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, attention_mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)


def lam(**options: Any) -> Contender:
    def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, attention_mask: Tensor | None) -> Tensor:
        return lam_attention(query, key, value, mask, attention_mask=attention_mask, **options)

    return run


def lam_non_negative(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, attention_mask: Tensor | None) -> Tensor:
    return lam_attention(query, key, value, F.softplus(mask), attention_mask=attention_mask)


# Another mechanism is another line here: a function of the same five tensors, which may ignore some.
CONTENDERS: dict[str, Contender] = {
    BASELINE: stock,
    "lam auto": lam(),
    "lam add": lam(combine="add"),
    "lam softplus": lam_non_negative,
    "lam eager": lam(implementation="eager"),
}


def make_inputs(length: int, args: argparse.Namespace, grad: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value as an encoder makes them, `(B, L, H, D)` transposed, and a mask `(B, 1 or H, L, L)`."""
    made = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    query, key, value = (
        torch.randn(args.batch, length, args.heads, args.size, **made).transpose(1, 2).requires_grad_(grad)
        for _ in range(3)
    )
    mask = (1 + 0.1 * torch.randn(args.batch, args.masks, length, length, **made)).requires_grad_(grad)
    return query, key, value, mask


def make_padding(kind: str, length: int, args: argparse.Namespace) -> Tensor | None:
    """Bool, True = may attend: the last quarter of the last sample's keys is padding."""
    if kind == "none":
        return None
    padding = torch.ones(args.batch, 1, 1, length, dtype=torch.bool, device=args.device)
    padding[-1, ..., length - length // 4 :] = False
    return padding if kind == "keys" else padding.expand(-1, -1, length, -1).contiguous()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(step: Callable[[], Any], device: str) -> float:
    """Milliseconds of one call."""
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def time_case(length: int, padding: str, direction: str, args: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds of every contender, interleaved, and the ratios to the baseline."""
    backward = direction == "forward+backward"
    inputs = make_inputs(length, args, grad=backward)
    attention_mask = make_padding(padding, length, args)
    grad_out = torch.randn_like(inputs[0])

    def step(contender: Contender) -> None:
        out = contender(*inputs, attention_mask)
        if backward:
            torch.autograd.grad(out, inputs, grad_out, allow_unused=True)

    medians = interleaved({name: partial(step, contender) for name, contender in CONTENDERS.items()}, args)
    ratios = {name: value / medians[BASELINE] for name, value in medians.items()}
    return {"length": length, "padding": padding, "direction": direction, "ms": medians, "ratio": ratios}


def interleaved(steps: dict[str, Callable[[], None]], args: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of every step, one after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-args.warmup, args.rounds):
        for name, step in steps.items():
            elapsed = timed(step, args.device)
            if round_ >= 0:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


@contextmanager
def competing(processes: int) -> Iterator[None]:
    """While that many other processes want the cores."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def half_views(segments: int, heads: int) -> list[View]:
    """Half of the heads look at their own modality, the other half at one pair after the other."""
    names = [f"modality_{i}" for i in range(segments)]
    return [parse_view(view, names) for view in resolve_views("half", 1, heads, names)[0]]


def view_steps(lengths: tuple[int, ...], direction: str, args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """What is timed of attention views: a call of full attention, of the views, and of what else does the same."""
    backward = direction == "forward+backward"
    longer = tuple(length + BOTTLENECK_TOKENS for length in lengths)
    views, own = half_views(len(lengths), args.heads), [parse_view("self", [str(i) for i in range(len(lengths))])]
    inputs, long_inputs = (make_inputs(sum(tokens), args, grad=backward)[:3] for tokens in (lengths, longer))
    per_head = seen_pairs(Layout(lengths), views, inputs[0].device)
    contenders: dict[str, tuple[Callable[..., Tensor], Any]] = {
        "full": (F.scaled_dot_product_attention, inputs),
        "locomt": (lambda q, k, v: locomt_attention(q, k, v, lengths, views), inputs),
        "per-head mask": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=per_head), inputs),
        "bottleneck": (lambda q, k, v: locomt_attention(q, k, v, longer, own * args.heads), long_inputs),
    }
    return {name: partial(attend_step, run, tensors) for name, (run, tensors) in contenders.items()}


def attend_step(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """One call, and its gradients where the inputs want them."""
    out = run(*inputs)
    if inputs[0].requires_grad:
        torch.autograd.grad(out, inputs, torch.ones_like(out))


def time_views(lengths: tuple[int, ...], direction: str, args: argparse.Namespace) -> dict[str, Any]:
    """Attention views against full attention: time ratio, FLOPs ratio, and the first over the second."""
    views = half_views(len(lengths), args.heads)
    medians = interleaved(view_steps(lengths, direction, args), args)
    full = sum(lengths) ** 2
    flops = {
        "full": 1.0,
        "locomt": sum(view_cost(view, lengths) for view in views) / len(views) / full,
        "per-head mask": 1.0,
        "bottleneck": bottleneck_cost(lengths, BOTTLENECK_TOKENS) / full,
    }
    ratios = {name: value / medians["full"] for name, value in medians.items()}
    overhead = {name: ratio / flops[name] for name, ratio in ratios.items()}
    return {"segments": lengths, "direction": direction, "ms": medians, "ratio": ratios, "flops_ratio": flops,
            "overhead": overhead}  # fmt: skip


def attention_layer(grid: tuple[int, ...], args: argparse.Namespace) -> tuple[nn.Module, nn.Module, Any]:
    """One attention layer of a ViT or a VideoMAE, with its projections, and the encoder around it."""
    size = {"hidden_size": args.heads * args.size, "num_attention_heads": args.heads, "num_hidden_layers": 1}
    size |= {"image_size": 16 * grid[-1], "patch_size": 16, "intermediate_size": 16}
    base: Any
    if len(grid) == 2:
        base = ViTModel(ViTConfig(**size), add_pooling_layer=False)
        layer = base.layers[0].attention
        linear = (layer.v_proj, layer.o_proj)
    else:
        base = VideoMAEModel(VideoMAEConfig(**size, num_frames=2 * grid[0], tubelet_size=2))
        layer = base.encoder.layer[0].attention
        linear = (layer.attention.value, layer.output.dense)
    base.to(args.device, getattr(torch, args.dtype)).eval()
    return layer, nn.Sequential(*linear), base


def layer_steps(
    grid: tuple[int, ...], direction: str, args: argparse.Namespace, variants: Sequence[str]
) -> dict[str, Callable[[], None]]:
    """What is timed of a layer: the stock one, each variant of STT, and the two linear layers of all."""
    backward = direction == "forward+backward"
    layers: dict[str, Callable[[Tensor], Any]] = {}
    layers[BASELINE], layers["two linears"], base = attention_layer(grid, args)
    for variant in variants:
        layer, _, base = attention_layer(grid, args)
        inject(base, SttConfig(variant))
        of_pass = ForwardPass(injection_of(base), "auto")
        layers[variant] = partial(layer, **{PASS: of_pass})
    made = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    hidden_states = torch.randn(args.batch, tokens_of(grid), args.heads * args.size, **made, requires_grad=backward)

    def step(layer: Callable[[Tensor], Any]) -> None:
        with torch.set_grad_enabled(backward):
            out = layer(hidden_states)
        out = out[0] if isinstance(out, tuple) else out
        if backward:
            out.backward(torch.ones_like(out))

    return {name: partial(step, layer) for name, layer in layers.items()}


def tokens_of(grid: tuple[int, ...]) -> int:
    """Tokens of a ViT, which has [CLS] besides its grid, or of a VideoMAE."""
    return (len(grid) == 2) + torch.Size(grid).numel()


def time_layers(
    grid: tuple[int, ...], direction: str, args: argparse.Namespace, variants: Sequence[str]
) -> dict[str, Any]:
    """A whole attention layer with synthesised attention against the stock one, and the two linear layers of both."""
    medians = interleaved(layer_steps(grid, direction, args, variants), args)
    faster = {name: medians[BASELINE] / value for name, value in medians.items()}
    return {"grid": grid, "tokens": tokens_of(grid), "direction": direction, "ms": medians, "times_faster": faster}


def peak_of_one_forward(name: str, args: argparse.Namespace) -> float:
    """MiB by which one forward raises this process's peak above what its inputs and its output hold."""
    inputs = make_inputs(MEMORY_LENGTH, args, grad=False)
    out_mib = inputs[2].nbytes / 2**20
    with torch.no_grad():
        CONTENDERS[name](*make_inputs(64, args, grad=False), None)  # libraries and thread pools start before
        if args.device == "cuda":
            CONTENDERS[name](*inputs, None)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() / 2**20
            CONTENDERS[name](*inputs, None)
            return torch.cuda.max_memory_allocated() / 2**20 - before - out_mib
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
        before = resident_peak()
        CONTENDERS[name](*inputs, None)
        return resident_peak() - before - out_mib


def resident_peak() -> float:
    """MiB; Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def measure_memory(name: str, args: argparse.Namespace) -> float:
    keys = ("batch", "heads", "size", "masks", "dtype", "device", "threads")
    options = [f"--{key}={getattr(args, key)}" for key in keys]
    command = [sys.executable, __file__, f"--memory-of={name}", *options]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def environment(args: argparse.Namespace, options: Sequence[str] = OPTIONS) -> dict[str, Any]:
    """What the figures depend on: versions, the machine, and those of the options."""
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **{key: getattr(args, key) for key in options},
    }


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--mechanism", nargs="+", default=list(MECHANISMS), choices=list(MECHANISMS))
    parser.add_argument("--padding", nargs="+", default=["none", "keys", "full"], choices=["none", "keys", "full"],
                        help="keys: bool (B, 1, 1, L); full: bool (B, 1, L, L), as transformers makes it")  # fmt: skip
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--size", type=int, default=64, help="head size")
    parser.add_argument("--masks", type=int, default=1, help="learnable masks: 1 for all heads, or as many as heads")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few rounds, no padding, no L=1568, no memory")
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute all the while")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--memory-of", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.masks not in (1, args.heads):
        parser.error(f"--masks must be 1 or the number of heads, {args.heads}, got {args.masks}.")
    args.segments, args.grids = SEGMENTS, GRIDS
    if args.quick:
        args.segments, args.grids = SEGMENTS[:1], GRIDS[:1]
        args.lengths, args.padding, args.rounds, args.warmup = LENGTHS[:2], ["none"], 5, 1
    return args


def run_lam(args: argparse.Namespace, results: dict[str, Any]) -> None:
    rows = [["L", "padding", "direction", *(f"{name} ms" for name in CONTENDERS), *(f"{n} ratio" for n in CONTENDERS)]]
    for length in args.lengths:
        for padding in args.padding:
            for direction in ("forward", "forward+backward"):
                case = time_case(length, padding, direction, args)
                results["times"].append(case)
                figures = [*(f"{v:.2f}" for v in case["ms"].values()), *(f"{v:.2f}" for v in case["ratio"].values())]
                rows.append([str(length), padding, direction, *figures])
    print("\nLAM\n" + table(rows))
    if not args.quick:
        results["memory_mib"] = {name: measure_memory(name, args) for name in CONTENDERS}
        print(f"\npeak memory of one forward at L={MEMORY_LENGTH}, beyond its inputs and its output:")
        print(table([["", "MiB"], *([name, f"{mib:.0f}"] for name, mib in results["memory_mib"].items())]))


def run_locomt(args: argparse.Namespace, results: dict[str, Any]) -> None:
    head = ["segments", "direction", "full ms", "locomt ms", "time ratio", "FLOPs ratio", "time/FLOPs"]
    rows = [[*head, "per-head mask", f"bottleneck ({BOTTLENECK_TOKENS} tokens)"]]
    for lengths in args.segments:
        for direction in ("forward", "forward+backward"):
            case = time_views(lengths, direction, args)
            results["views"].append(case)
            ms, ratio = case["ms"], case["ratio"]
            figures = [ms["full"], ms["locomt"], ratio["locomt"], case["flops_ratio"]["locomt"]]
            figures += [case["overhead"]["locomt"], ratio["per-head mask"], ratio["bottleneck"]]
            rows.append(["+".join(map(str, lengths)), direction, *(f"{figure:.2f}" for figure in figures)])
    print("\nLoCoMT, half of the heads self and half cross; the last two columns are times over full attention\n")
    print(table(rows))


def run_stt(args: argparse.Namespace, results: dict[str, Any]) -> None:
    rows: list[list[str]] = []
    for grid in args.grids:
        for direction in ("forward", "forward+backward"):
            case = time_layers(grid, direction, args, ["dense", "random"])
            results["layers"].append(case)
            names = list(case["ms"])
            rows = rows or [["grid", "direction", *(f"{n} ms" for n in names), *(f"{n} ×" for n in names[1:])]]
            figures = [*case["ms"].values(), *(case["times_faster"][name] for name in names[1:])]
            rows.append(["×".join(map(str, grid)), direction, *(f"{figure:.2f}" for figure in figures)])
    print("\nSTT, the whole attention layer with its projections; × is how many times faster than the stock layer\n")
    print(table(rows))
    if args.quick:
        return
    growth = argparse.Namespace(**{**vars(args), "batch": 1, "rounds": max(3, args.rounds // 3), "warmup": 1})
    rows = [["grid", "tokens", "stock ms", "stt ms", "stock, relative", "stt, relative", "times faster"]]
    for steps in GROWING_STEPS:
        case = time_layers((steps, 14, 14), "forward", growth, ["dense"])
        results["growth"].append(case)
        first = results["growth"][0]["ms"]
        ms = [case["ms"][name] for name in (BASELINE, "dense")]
        relative = [case["ms"][name] / first[name] for name in (BASELINE, "dense")]
        figures = [*ms, *relative, case["times_faster"]["dense"]]
        rows.append([f"{steps}×14×14", str(case["tokens"]), *(f"{figure:.2f}" for figure in figures)])
    print("\nthe same as a video gets longer; one sample, forward, dense; relative to the shortest\n")
    print(table(rows))


MECHANISMS = {"lam": run_lam, "locomt": run_locomt, "stt": run_stt}


def main() -> None:
    logging.getLogger("hf_lam").setLevel(logging.ERROR)  # that a new pure STT changes the outputs is no news here
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.memory_of:
        print(peak_of_one_forward(args.memory_of, args))
        return
    results: dict[str, Any] = {
        "environment": environment(args) | {"masks": args.masks, "busy": args.busy},
        "times": [],
        "memory_mib": {},
        "views": [],
    }
    results |= {"layers": [], "growth": []}
    print("  ".join(f"{key}={value}" for key, value in results["environment"].items()))
    with competing(args.busy):
        for name in args.mechanism:
            MECHANISMS[name](args, results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

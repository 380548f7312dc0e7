"""Step time of the fusion layers over tokens of four modalities: LoCoMT against full attention and MBT's bottleneck.

What is timed are the fusion layers of `HfLamFusionModel` as they run inside of it, on random tokens in place of those
that the modalities' encoders make: the encoders are the same in every row, and would only add their time to all of
them. Training is forward and backward, down to the tokens and all weights, without an optimizer's step.

Every row runs in the same process, one after the other in every round, so that a busy machine slows all of them alike;
a figure is the median of the rounds. Run `python benchmarks/fusion.py --help`.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attention import environment, interleaved, table
from torch import Tensor
from transformers import ASTConfig, BertConfig, VideoMAEConfig, ViTConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

from hf_lam import HfLamFusionConfig, HfLamFusionModel
from hf_lam.flops import FLOPS_PER_PAIR
from hf_lam.modeling.attention_pass_hf_lam import MODALITY_TOKENS
from hf_lam.modeling.configuration_hf_lam_fusion import MODALITIES
from hf_lam.modeling.hosts_hf_lam import ModalityTokens
from hf_lam.modeling.locomt_attention_hf_lam import seen_pairs
from hf_lam.modeling.locomt_hf_lam import BOTTLENECK_TOKENS
from hf_lam.modeling.locomt_layout_hf_lam import Layout
from hf_lam.modeling.locomt_views_hf_lam import View, bottleneck_cost, parse_view, resolve_views, view_cost

TOKENS = (256, 196, 1568, 400)  # BERT, ViT (224 pixels, patches of 16), VideoMAE (16 frames), an AST
QUICK_TOKENS = (64, 49, 392, 100)
DIRECTIONS = ("forward", "training")


class Row(NamedTuple):
    """One contender.

    run: function that takes the tokens of all modalities `(B, L, d)` through the fusion layers.
    model: model with these fusion layers.
    attention: FLOPs of the attention products of all layers, for one sample.
    tokens: number of tokens in the layers' sequence, those of a bottleneck included.
    """

    run: Callable[[Tensor], Tensor]
    model: HfLamFusionModel
    attention: int
    tokens: int


def make_model(args: argparse.Namespace, **options: Any) -> HfLamFusionModel:
    """A fusion model whose encoders have no layers of their own; the same weights in every row."""
    tiny: dict[str, Any] = {
        "hidden_size": 8,
        "num_attention_heads": 1,
        "num_hidden_layers": 0,
        "intermediate_size": 8,
    }
    grid = {**tiny, "image_size": 16, "patch_size": 16}
    torch.manual_seed(0)
    config = HfLamFusionConfig(
        text_config=BertConfig(**tiny, vocab_size=8, max_position_embeddings=8),
        image_config=ViTConfig(**grid),
        video_config=VideoMAEConfig(**grid, num_frames=2),
        audio_config=ASTConfig(**tiny, max_length=16, num_mel_bins=16),
        hidden_size=args.heads * args.size,
        num_attention_heads=args.heads,
        num_hidden_layers=args.layers,
        **options,
    )
    return HfLamFusionModel(config).to(args.device, getattr(torch, args.dtype))


def make_rows(args: argparse.Namespace) -> dict[str, Row]:
    """Every contender by its name; `full` and `bottleneck` are what LoCoMT is compared with."""
    lengths, heads = tuple(args.tokens), args.heads
    names = list(MODALITIES)
    views = [[parse_view(v, names) for v in row] for row in resolve_views(args.views, args.layers, heads, names)]
    present = torch.ones(args.batch, len(lengths), dtype=torch.bool, device=args.device)
    tokens = ModalityTokens(lengths, present)

    def fused(model: HfLamFusionModel, hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
        return model.encoder(hidden_states, mask, **{MODALITY_TOKENS: tokens})

    def products(table: list[list[View]]) -> int:
        return FLOPS_PER_PAIR * args.size * sum(view_cost(view, lengths) for row in table for view in row)

    full, own = make_model(args), make_model(args, baseline="self")
    locomt = make_model(args, hf_lam={"locomt": {"views": args.views}})
    bottleneck = make_model(args, baseline="bottleneck")
    total = sum(lengths)
    longer = total + BOTTLENECK_TOKENS * len(lengths)
    every, itself = parse_view("full", names), parse_view("self", names)
    at_bottleneck = FLOPS_PER_PAIR * args.size * args.layers * heads * bottleneck_cost(lengths, BOTTLENECK_TOKENS)
    rows = {
        "full": Row(partial(fused, full), full, products([[every] * heads] * args.layers), total),
        "bottleneck": Row(partial(fused, bottleneck), bottleneck, at_bottleneck, longer),
        "self": Row(partial(fused, own), own, products([[itself] * heads] * args.layers), total),
        "locomt": Row(partial(fused, locomt), locomt, products(views), total),
    }
    if all(row == views[0] for row in views):
        # All layers get the same mask, which presets other than random ones have in all layers.
        per_head = seen_pairs(Layout(lengths), views[0], torch.device(args.device))
        masked = partial(fused, full, mask=per_head)
        rows["per-head mask"] = Row(masked, full, rows["full"].attention, total)
    return rows


def layer_flops(row: Row, args: argparse.Namespace) -> int:
    """FLOPs of the fusion layers for one sample: attention, projections and feed-forward layers."""
    width, inner = row.model.config.hidden_size, row.model.config.intermediate_size
    return row.attention + 2 * args.layers * row.tokens * (4 * width**2 + 2 * width * inner)


def time_rows(rows: dict[str, Row], direction: str, args: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds of every row, interleaved, and ratios to full attention and to the bottleneck."""
    is_training = direction == "training"
    made = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    torch.manual_seed(1)
    hidden_states = torch.randn(args.batch, sum(args.tokens), args.heads * args.size, **made)
    hidden_states.requires_grad_(is_training)
    gradient = torch.randn_like(hidden_states)

    def step(row: Row) -> None:
        with torch.set_grad_enabled(is_training):
            out = row.run(hidden_states)
        if is_training:
            out.backward(gradient)
            row.model.zero_grad()
            hidden_states.grad = None

    for row in rows.values():
        row.model.train(is_training)
    medians = interleaved({name: partial(step, row) for name, row in rows.items()}, args)
    return {
        "direction": direction,
        "ms": medians,
        "over_full": {name: ms / medians["full"] for name, ms in medians.items()},
        "over_bottleneck": {name: ms / medians["bottleneck"] for name, ms in medians.items()},
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs=len(MODALITIES), default=TOKENS, metavar=MODALITIES)
    parser.add_argument("--views", default="half", help="LoCoMT's preset, such as half, cross or round_robin")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--size", type=int, default=64, help="head size")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few rounds, one layer, a quarter of the tokens")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args(arguments)
    if args.quick:
        args.tokens, args.layers, args.rounds = QUICK_TOKENS, 1, 5
    return args


def main(arguments: list[str] | None = None) -> None:
    logging.getLogger("hf_lam").setLevel(logging.ERROR)  # that views change the outputs is no news here
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    rows = make_rows(args)
    attention = {name: row.attention for name, row in rows.items()}
    layers = {name: layer_flops(row, args) for name, row in rows.items()}
    results: dict[str, Any] = {
        "environment": {**environment(args), "layers": args.layers, "views": args.views},
        "tokens": dict(zip(MODALITIES, args.tokens, strict=True)),
        "attention_flops": attention,
        "layer_flops": layers,
        "times": [time_rows(rows, direction, args) for direction in DIRECTIONS],
    }
    print("  ".join(f"{key}={value}" for key, value in results["environment"].items()))
    print("tokens: " + ", ".join(f"{name} {length}" for name, length in results["tokens"].items()))
    head = ["", "attention GFLOPs", "/full", "layers GFLOPs", "/full"]
    lines = [[*head, *(title for name in DIRECTIONS for title in (f"{name} ms", "/full", "/bottleneck"))]]
    for name in rows:
        cells = [attention[name] / 1e9, attention[name] / attention["full"]]
        cells += [layers[name] / 1e9, layers[name] / layers["full"]]
        for case in results["times"]:
            cells += [case["ms"][name], case["over_full"][name], case["over_bottleneck"][name]]
        lines.append([name, *(f"{cell:.2f}" for cell in cells)])
    print(f"\nthe fusion layers; locomt: views {args.views!r}; bottleneck: {BOTTLENECK_TOKENS} tokens\n")
    print(table(lines))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

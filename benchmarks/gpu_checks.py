"""Whether the mechanisms compute the right thing on a device, before anybody times them there.

Every path is compared with the formula, `implementation="eager"`, in fp32: its outputs, and the gradients of every
input. A path in bf16 or fp16 gets the same numbers, rounded to its dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from device_timing import describe_error
from flex_views import attend_flex_views, flex_views_obstacle
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from hf_lam import LamConfig, LocomtConfig, SttConfig, inject, mechanism_parameters
from hf_lam.modeling.lam_attention_hf_lam import flex_obstacle, lam_attention
from hf_lam.modeling.locomt_attention_hf_lam import locomt_attention
from hf_lam.modeling.locomt_views_hf_lam import View
from hf_lam.modeling.stt_attention_hf_lam import stt_attention

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Relative to the largest number of the reference. On a CPU the errors reach 2e-6, 2e-2 and 4e-3.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}
# A gradient is compared with at least this part of the largest gradient: the rest is sums that cancel.
_LEAST_OF_GRADIENTS = 0.1
# Below this part of the largest, a gradient is zero in theory, as that of a query that sees one key.
_ZERO = 1e-4
BATCH, HEADS, SIZE = 2, 3, 32
# Tokens, and the padding of the last sample: `keys`, the second half; `nothing`, all of it. flex_attention has another
# kernel below 128 tokens.
LENGTHS = ((150, "none"), (131, "keys"), (131, "nothing"), (37, "keys"), (1, "none"))
SEGMENTS = ((60, 41, 49), (1, 130, 0), (0, 0, 33))
VIEWS: tuple[View, ...] = (
    frozenset({(0, 0), (1, 1), (2, 2)}),
    frozenset({(0, 1), (1, 0)}),
    frozenset({(i, j) for i in range(3) for j in range(3)}),
)
GRIDS = (((14, 14), 1), ((3, 7, 7), 0), ((1, 9), 2), ((1,), 0))  # with the number of tokens before the grid

Run = Callable[..., Tensor]


class Check(NamedTuple):
    """One comparison.

    error: the largest difference, relative to the largest number of the reference; None where the path failed.
    where: the tensor with this error, or what the path said when it failed.
    """

    path: str
    case: str
    dtype: str
    error: float | None
    allowed: float
    where: str

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= self.allowed  # NaN is not


def failures(checks: Sequence[Check]) -> list[str]:
    """A line for every check that failed."""
    return [
        f"{check.path}, {check.case}, {check.dtype}: "
        + (check.where if check.error is None else f"{check.where} off by {check.error:.1e} > {check.allowed:.0e}")
        for check in checks
        if not check.passed
    ]


def compare(
    path: str, case: str, run: Run, reference: Run, inputs: dict[str, Tensor], gradients: bool = True
) -> Check:
    """Run a path on its inputs, and the reference on the same numbers in fp32.

    inputs: leaves of one dtype, by name; arguments of both functions, in this order.
    """
    dtype = next(iter(inputs.values())).dtype
    label = str(dtype).removeprefix("torch.")
    try:
        expected = _results(reference, {name: x.float() for name, x in inputs.items()}, gradients)
        actual = _results(run, inputs, gradients)
    except Exception as error:
        return Check(path, case, label, None, TOLERANCE[dtype], describe_error(error))
    errors = relative_errors(actual, expected)
    worst = max(errors, key=lambda name: float("inf") if errors[name] != errors[name] else errors[name])
    return Check(path, case, label, errors[worst], TOLERANCE[dtype], worst)


def _results(run: Run, inputs: dict[str, Tensor], gradients: bool) -> dict[str, Tensor]:
    """The output, and the gradient of every input, by name."""
    leaves = [x.detach().requires_grad_(gradients) for x in inputs.values()]
    with torch.set_grad_enabled(gradients):
        out = run(*leaves)
    results = {"output": out.detach()}
    if gradients:
        weights = torch.sin(torch.arange(out.numel(), device=out.device)).view(out.shape)  # the same for both
        found = torch.autograd.grad(out, leaves, weights.to(out.dtype), allow_unused=True)
        results |= {
            f"gradient of {name}": torch.zeros_like(leaf) if gradient is None else gradient
            for name, leaf, gradient in zip(inputs, leaves, found, strict=True)
        }
    return results


def relative_errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    largest = {name: x.abs().max().item() for name, x in expected.items()}
    of_gradients = max((size for name, size in largest.items() if name != "output"), default=0.0)
    errors = {}
    for name, wanted in expected.items():
        difference = (actual[name].float() - wanted).abs().max().item()
        scale = largest[name]
        if name != "output":
            is_zero = scale < _ZERO * of_gradients
            scale = of_gradients if is_zero else max(scale, _LEAST_OF_GRADIENTS * of_gradients)
        errors[name] = difference / (scale or 1.0)
    return errors


# --- LAM -------------------------------------------------------------------------------------------------------------


def check_lam(device: str) -> Iterator[Check]:
    """Each implementation with gradients; what "auto" takes without them, which on CUDA is flex_attention.

    Every dtype, direction and kind of padding is another kernel of flex_attention to compile. One token is checked in
    one dtype.
    """
    for dtype in DTYPES:
        for length, padding in LENGTHS:
            inputs = _projections(length, dtype, device)
            mask = 1 + 0.5 * torch.randn(BATCH, 1, length, length, device=device)
            inputs["mask"] = mask.to(dtype)
            case = f"{length} tokens, padding: {padding}"
            flex = length > 1 or dtype == torch.bfloat16
            yield from _check_lam_case(inputs, _padding(padding, length, device), case, flex, padding == "keys")
    inputs = _projections(67, torch.float32, device)
    inputs["mask"] = torch.randn(BATCH, HEADS, 67, 67, device=device)
    yield from _check_lam_case(inputs, None, "a mask for every head", True, False)


def _check_lam_case(
    inputs: dict[str, Tensor], padding: Tensor | None, case: str, flex: bool, without_gradients: bool
) -> Iterator[Check]:
    has_flex = flex and flex_obstacle(inputs["query"], inputs["value"], 0.0) is None
    call = partial(lam_attention, attention_mask=padding)
    reference = partial(call, implementation="eager")
    for name in ("eager", "chunked", *(["flex_attention"] if has_flex else [])):
        yield compare(f"lam {name}", case, partial(call, implementation=name), reference, inputs)
    if without_gradients:
        yield compare("lam auto, no gradients", case, call, reference, inputs, gradients=False)
    yield compare("lam auto, added", case, partial(call, combine="add"), partial(reference, combine="add"), inputs)


def _projections(length: int, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """As an encoder makes them: `(B, L, H, D)`, transposed."""
    names = ("query", "key", "value")
    return {name: torch.randn(BATCH, length, HEADS, SIZE, device=device).transpose(1, 2).to(dtype) for name in names}


def _padding(kind: str, length: int, device: str) -> Tensor | None:
    """Bool, `(B, 1, 1, L)`, True = may attend."""
    if kind == "none":
        return None
    padding = torch.ones(BATCH, 1, 1, length, dtype=torch.bool, device=device)
    padding[-1, ..., (length + 1) // 2 if kind == "keys" else 0 :] = False
    return padding


# --- LoCoMT ----------------------------------------------------------------------------------------------------------


def check_locomt(device: str) -> Iterator[Check]:
    """Blocks, alone and with a mask of LAM in them; and the block mask of flex_attention, their rival."""
    for dtype in DTYPES:
        for lengths in SEGMENTS:
            total = sum(lengths)
            inputs = _projections(total, dtype, device)
            for kind in ("none", "keys", "nothing"):
                call = partial(_attend_views, lengths, _padding(kind, total, device))
                case = f"segments {list(lengths)}, padding: {kind}"
                yield compare("locomt blocks", case, partial(call, "blocks"), partial(call, "eager"), inputs)
            call = partial(_attend_views, lengths, None)
            with_mask = {**inputs, "mask": (1 + 0.5 * torch.randn(BATCH, 1, total, total, device=device)).to(dtype)}
            case = f"segments {list(lengths)}"
            yield compare("locomt blocks and lam", case, partial(call, "blocks"), partial(call, "eager"), with_mask)
            if lengths == SEGMENTS[0]:
                flex = attend_flex_views(lengths, VIEWS, device)
                has_gradients = flex_views_obstacle(device, backward=True) is None
                yield compare("flex block mask", case, flex, partial(call, "eager"), inputs, has_gradients)


def _attend_views(
    lengths: tuple[int, ...],
    padding: Tensor | None,
    implementation: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    options: dict[str, Any] = {"mask": mask, "attention_mask": padding, "implementation": implementation}
    return locomt_attention(query, key, value, lengths, VIEWS, **options)


# --- STT -------------------------------------------------------------------------------------------------------------


def check_stt(device: str) -> Iterator[Check]:
    """Modes: the axes one after the other."""
    for dtype in DTYPES:
        for grid, prefix in GRIDS:
            length = prefix + torch.Size(grid).numel()
            inputs = {"value": _projections(length, dtype, device)["value"]}
            for axis, places in enumerate(grid):
                weights = torch.randn(BATCH, HEADS, prefix + places, places, device=device).softmax(-1)
                inputs[f"axis {axis}"] = weights.to(dtype)
            if prefix:
                shares = torch.randn(BATCH, HEADS, length, 1 + prefix, device=device).softmax(-1)
                inputs["prefix shares"] = shares.to(dtype)
            for kind in ("none", "keys") if length > 1 else ("none",):
                call = partial(_attend_synthesized, len(grid), _padding(kind, length, device))
                case = f"grid {list(grid)} after {prefix}, padding: {kind}"
                yield compare("stt modes", case, partial(call, "modes"), partial(call, "eager"), inputs)


def _attend_synthesized(
    axes: int, padding: Tensor | None, implementation: str, value: Tensor, *factors: Tensor
) -> Tensor:
    shares = factors[axes] if len(factors) > axes else None
    options: dict[str, Any] = {"attention_mask": padding, "implementation": implementation}
    return stt_attention(value, factors[:axes], prefix_shares=shares, **options)


# --- models ----------------------------------------------------------------------------------------------------------


def check_models(device: str) -> Iterator[Check]:
    """Small models in fp32, by the fast paths, against the same models with `attn_implementation="eager"`."""
    tokens, height = 37, 64
    size: dict[str, Any] = {
        "hidden_size": 96,
        "num_attention_heads": HEADS,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
    }
    ids = torch.arange(2 * tokens, device=device).view(2, tokens) % 50
    padding = torch.ones_like(ids)
    padding[-1, tokens // 2 :] = 0
    text = {"input_ids": ids, "attention_mask": padding}
    image = {"pixel_values": torch.randn(2, 3, height, height, device=device)}
    parts = [["first", 20], ["second", tokens - 20]]
    head = torch.empty(1, 1, 1, SIZE, device=device)
    has_flex = flex_obstacle(head, head, 0.0) is None
    of_text: tuple[Any, ...] = (LamConfig(), LocomtConfig(parts, views="half"))
    of_image: tuple[Any, ...] = (LamConfig(), LocomtConfig(views="half"), SttConfig("dense"), SttConfig("random"))
    for config in of_text:
        bert = BertModel(BertConfig(**size, vocab_size=50, max_position_embeddings=tokens), add_pooling_layer=False)
        is_lam = isinstance(config, LamConfig)
        for name in ("sdpa", *(["flex_attention"] if has_flex and is_lam else [])):
            yield from _check_model(bert, config, name, text, device)
    for config in of_image:
        vit = ViTModel(ViTConfig(**size, image_size=height, patch_size=16), add_pooling_layer=False)
        yield from _check_model(vit, config, "sdpa", image, device)


def _check_model(
    base: Any, config: Any, implementation: str, inputs: dict[str, Tensor], device: str
) -> Iterator[Check]:
    """The last hidden states in an evaluation; the same and the gradients of all parameters in a training."""
    model = inject(copy.deepcopy(base), config).to(device).eval()
    with torch.no_grad():
        for parameter in mechanism_parameters(model):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)  # away from the identity
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    model.set_attn_implementation(implementation)
    parameters = {name: x.detach() for name, x in model.named_parameters()}
    keep = inputs.get("attention_mask")

    def run(module: nn.Module, *values: Tensor) -> Tensor:
        given = dict(zip(parameters, values, strict=True))
        out = torch.func.functional_call(module, given, kwargs=inputs).last_hidden_state
        return out if keep is None else out * keep[..., None]

    path = f"{type(base).__name__} with {type(config).__name__}, {implementation}"
    for case, gradients in (("evaluation", False), ("training", True)):
        yield compare(path, case, partial(run, model), partial(run, reference), parameters, gradients)


CHECKS: dict[str, Callable[[str], Iterator[Check]]] = {
    "lam": check_lam,
    "locomt": check_locomt,
    "stt": check_stt,
    "models": check_models,
}

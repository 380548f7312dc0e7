"""Whole models, stock and with each mechanism: what benchmarks/gpu.py times, as they are and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from device_timing import Step
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel, ViTConfig, ViTModel

from hf_lam import LamConfig, LocomtConfig, SttConfig, inject

STOCK = "stock"
# A compiled model in bf16 rounds in fewer places than the same model as it is.
_COMPILED_TOLERANCE = 0.1


class Shape(NamedTuple):
    """A model and its input.

    tokens: of a text; None for an image.
    sizes: options of the model's configuration; none is the base size.
    """

    name: str
    batch: int
    tokens: int | None
    sizes: dict[str, int]


SHAPES = (
    Shape("BERT 8×128", 8, 128, {}),
    Shape("BERT 1×512", 1, 512, {}),
    Shape("ViT 8×224²", 8, None, {}),
)


def tiny_shapes() -> tuple[Shape, ...]:
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
    }
    return (
        Shape("BERT 2×8", 2, 8, {**size, "vocab_size": 50, "max_position_embeddings": 16}),
        Shape("ViT 2×32²", 2, None, {**size, "image_size": 32}),
    )


def make_models(shape: Shape, device: str, dtype: torch.dtype) -> tuple[dict[str, PreTrainedModel], dict[str, Tensor]]:
    """The stock model and one with each mechanism, of random weights; and an input without padding.

    Segments of a text are its halves, those of an image its quadrants; half of the heads look at their own, the others
    at one pair after the other.
    """
    configs: dict[str, Any] = {STOCK: None, "lam": LamConfig()}
    if shape.tokens is None:
        configs |= {"locomt": LocomtConfig(views="half"), "stt": SttConfig("dense")}
    else:
        first = shape.tokens // 2
        segments = [["first", first], ["second", shape.tokens - first]]
        configs |= {"locomt": LocomtConfig(segments, views="half")}
    models = {}
    for name, config in configs.items():
        model: Any = _make(shape)
        if config is not None:
            inject(model, config)
        models[name] = model.to(device=device, dtype=dtype)
    if shape.tokens is None:
        side = models[STOCK].config.image_size
        return models, {"pixel_values": torch.randn(shape.batch, 3, side, side, device=device, dtype=dtype)}
    ids = torch.randint(models[STOCK].config.vocab_size, (shape.batch, shape.tokens), device=device)
    return models, {"input_ids": ids}


def _make(shape: Shape) -> PreTrainedModel:
    sizes: dict[str, Any] = shape.sizes
    if shape.tokens is None:
        return ViTModel(ViTConfig(**sizes), add_pooling_layer=False)
    return BertModel(BertConfig(**sizes), add_pooling_layer=False)


def compiled(model: nn.Module, backend: str) -> Callable[..., Any]:
    """The model compiled for the shape of one input."""
    return torch.compile(model, dynamic=False, backend=backend)


def check_compiled(model: nn.Module, call: Callable[..., Any], inputs: dict[str, Tensor]) -> None:
    """Compare the outputs of a compiled model with its own.

    Raises:
        RuntimeError: if they are others.
    """
    with torch.no_grad():
        expected, actual = (run(**inputs).last_hidden_state.float() for run in (model, call))
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    if not error <= _COMPILED_TOLERANCE:
        raise RuntimeError(f"the outputs of the compiled model are off by {error:.1e}")


def model_step(model: nn.Module, call: Callable[..., Any], inputs: dict[str, Tensor], backward: bool) -> Step:
    """A forward pass; in a training the backward pass, too, down to all weights, without an optimizer's step.

    A compiled model is checked before its first pass, unless it is in training mode, where dropout would differ.
    """
    is_checked = call is model or model.training

    def step() -> None:
        nonlocal is_checked
        if not is_checked:
            check_compiled(model, call, inputs)
            is_checked = True
        with torch.set_grad_enabled(backward):
            out = call(**inputs).last_hidden_state
        if backward:
            out.backward(torch.ones_like(out))
            model.zero_grad()

    return step

"""What models return, as tensors by name, and how far it is from what another one returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from helpers.families import Family


def outputs_of(model: nn.Module, inputs: Mapping[str, Any], **options: Any) -> dict[str, Tensor]:
    """The floating-point tensors that a model returns, by name."""
    with torch.no_grad():
        outputs = model(**inputs, **options)
    return {key: value for key, value in outputs.items() if isinstance(value, Tensor) and value.is_floating_point()}


def without_padding(family: Family, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with zeros where the second sample has padding, of which nobody says what it becomes."""
    if family.short is None:
        return dict(outputs)
    kept = {key: value.clone() for key, value in outputs.items()}
    for value in kept.values():
        if value.dim() >= 2 and value.shape[:2] == (2, family.tokens):
            value[1, family.short :] = 0
    return kept


def distance(family: Family, left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """The largest difference of two models' outputs for a family's inputs; what is not finite is a failure."""
    left, right = without_padding(family, left), without_padding(family, right)
    assert left.keys() == right.keys() and left
    assert all(value.isfinite().all() for value in left.values())
    return max(float((left[key].float() - right[key].float()).abs().max()) for key in left)


def gradients_of(model: Any, family: Family, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of the sum of squares of the tokens, by the name of the parameter; dropout always draws the same."""
    torch.default_generator.manual_seed(0)
    model.zero_grad()
    hidden = model(**inputs).last_hidden_state
    without_padding(family, {"hidden": hidden})["hidden"].square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-5
) -> None:
    """Equal up to `tolerance`, relative to the largest gradient there is: some are nothing but rounding."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert gradient.isfinite().all(), name
        gap = float((found[name] - gradient).abs().max())
        assert gap <= tolerance * max(float(gradient.abs().max()), 0.01 * largest), (name, gap)


def take_second_alone(family: Family, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The second sample without its padding."""
    padding = inputs[str(family.padding)]
    length = int(padding[1].sum())
    return {
        key: value[1:2, :length] if value.shape[1:2] == padding.shape[1:] else value[1:2]
        for key, value in inputs.items()
    }


def scramble_padding(family: Family, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Other values in the padding of the second sample."""
    mask = inputs[str(family.padding)].bool()
    changed = dict(inputs)
    for key, value in inputs.items():
        if key not in (family.padding, "token_type_ids") and value.shape[:2] == mask.shape:
            other = torch.full_like(value, 7) if not value.is_floating_point() else value + 3
            keep = mask.view(*mask.shape, *[1] * (value.dim() - 2))
            changed[key] = torch.where(keep, value, other)
    return changed

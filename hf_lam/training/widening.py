"""The control of a mechanism: the same model with as many parameters more, in wider feed-forward layers.

What a mechanism gains might be gained by any parameters. The new units of a feed-forward layer get what the host draws
for its units, and give nothing at first: the model starts as the original, and is one of its class, with a larger
intermediate size in its configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..modeling.host_attention_hf_lam import find_encoder
from ..modeling.injection_hf_lam import plan_injection
from ..modeling.mechanism_hf_lam import MechanismConfig
from ..modeling.mechanism_registry_hf_lam import mechanism_block

logger = logging.get_logger(__name__)

ModelT = TypeVar("ModelT", bound=PreTrainedModel)

# What configurations call the width of their feed-forward layers, in units or in widths of the model.
_WIDTHS = ("intermediate_size", "encoder_ffn_dim", "ffn_dim", "hidden_dim", "d_ff", "d_inner", "ffn_hidden_size")
_RATIOS = ("mlp_ratio",)
# The greatest number of parts of one tensor that are widened alike: gated layers have two of them in one matrix.
_MOST_PARTS = 2


def count_added(model: PreTrainedModel, mechanisms: Sequence[MechanismConfig]) -> int:
    """Count the parameters that mechanisms would add to a model, less those that they replace.

    Raises:
        ValueError: if they cannot be attached to it, with the reason.
    """
    with torch.random.fork_rng(devices=[]):
        plan = plan_injection(model, mechanism_block(mechanisms))
    added = sum(parameter.numel() for parameter in plan.container.parameters())
    dropped = [getattr(attention, name) for attention, name in plan.projections]
    return added - sum(parameter.numel() for module in dropped for parameter in module.parameters())


def widen_like(model: ModelT, mechanisms: Sequence[MechanismConfig]) -> ModelT:
    """Make a model whose feed-forward layers have as many more parameters as mechanisms would add to it.

    Args:
        model: model without mechanisms. It is not changed, and its tensors may be those of the new one.
        mechanisms: mechanisms that the new model is compared with.

    Returns:
        A model of the same class, with the same outputs. The number of parameters is the nearest that a whole number
        of units in every layer gives, at least one.

    Raises:
        ValueError: if the mechanisms add no parameters, or cannot be attached; if no option of the model's
            configuration says how wide its feed-forward layers are, or they are not widened without a change.
    """
    wanted = count_added(model, mechanisms)
    names = ", ".join(mechanism.name for mechanism in mechanisms)
    if wanted < 1:
        what = "no parameters" if wanted == 0 else f"{-wanted:,} parameters less"
        raise ValueError(
            f"--control is as many parameters as {names} would add, and {type(model).__name__} has {what} with it. "
            "The original model is its control."
        )
    path, option = _find_option(model)
    before = _options_at(model.config, path)[option]
    per_step = _count(_config_with(model.config, path, option, before + 1), model) - _count(model.config, model)
    if option in _WIDTHS:
        value = before + max(1, round(wanted / per_step))
    else:
        width = _options_at(model.config, path)["hidden_size"]
        # So many units, and a quarter: they are rounded down.
        value = before + (max(1, round(wanted / per_step * width)) + 0.25) / width
    config = _config_with(model.config, path, option, value)
    made = _widened(model, config)
    added = sum(x.numel() for x in made.parameters()) - sum(x.numel() for x in model.parameters())
    logger.info(f"{option} is {value} in place of {before}: {added:,} more parameters, where {names} has {wanted:,}.")
    return made


# --- the option ------------------------------------------------------------------------------------------------------


def _find_option(model: Any) -> tuple[str | None, str]:
    """Find the option that says how wide the feed-forward layers are: its part of the configuration, and its name."""
    encoder = find_encoder(model)
    inner = [name for name in model.config.sub_configs if getattr(model.config, name, None) is encoder.config]
    path = inner[0] if inner else None
    options = _options_at(model.config, path)
    reasons = []
    for option in (*_WIDTHS, *_RATIOS):
        if not isinstance(options.get(option), (int, float)):
            continue
        try:
            # Whole multiples of the width would be far from any number of parameters.
            config = _config_with(model.config, path, option, options[option] + (1 if option in _WIDTHS else 0.5))
            list(_wider(model.state_dict(), _shapes(config, model)))
        except ValueError as error:
            reasons.append(f"{option}: {error}")
        else:
            return path, option
    raise ValueError(
        f"--control makes feed-forward layers wider, and {type(encoder.config).__name__} has no option for that"
        + (f" which does it without a change of the model ({'; '.join(reasons)})." if reasons else ".")
    )


def _options_at(config: PreTrainedConfig, path: str | None) -> dict[str, Any]:
    part: Any = config if path is None else getattr(config, path)
    options = part.to_dict()
    # Names of older classes are properties.
    return {
        **options,
        **{name: getattr(part, name) for name in (*_WIDTHS, *_RATIOS, "hidden_size") if hasattr(part, name)},
    }


def _config_with(config: PreTrainedConfig, path: str | None, option: str, value: Any) -> Any:
    changed: Any = copy.deepcopy(config)
    try:
        setattr(changed if path is None else getattr(changed, path), option, value)
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error.__cause__ or error).split())) from error
    return changed


def _shapes(config: Any, model: PreTrainedModel) -> dict[str, torch.Size]:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        made = type(model)(config)
    return {name: tensor.shape for name, tensor in made.state_dict().items()}


def _count(config: Any, model: PreTrainedModel) -> int:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return sum(parameter.numel() for parameter in type(model)(config).parameters())


# --- the tensors -----------------------------------------------------------------------------------------------------


def _wider(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> Iterator[tuple[str, int, int]]:
    """List every tensor that is wider: its name, the axis, and how many parts of it have as many new units each.

    Raises:
        ValueError: if other tensors come or go, or what is wider is not made of linear layers.
    """
    if state.keys() != shapes.keys():
        raise ValueError("it changes which weights there are")
    different = {name: shapes[name] for name, tensor in state.items() if tensor.shape != shapes[name]}
    axes = {}
    for name, shape in different.items():
        changed = [axis for axis, (a, b) in enumerate(zip(state[name].shape, shape, strict=True)) if a != b]
        if len(changed) != 1 or changed[0] > 1:
            raise ValueError(f"{name} becomes {tuple(shape)} from {tuple(state[name].shape)}")
        axes[name] = changed[0]
    leaving = [name for name, axis in axes.items() if axis == 1]
    if not leaving:
        raise ValueError("it makes no layer wider")
    by_width: dict[int, int] = {}
    for name in leaving:
        by_width[state[name].shape[1]] = shapes[name][1] - state[name].shape[1]
    for name, axis in axes.items():
        weight = f"{name.rpartition('.')[0]}.weight"
        if state[name].ndim == 1 and (weight == name or axes.get(weight) != 0):
            raise ValueError(f"{name} would normalise other units together")
        size, more = state[name].shape[axis], shapes[name][axis] - state[name].shape[axis]
        parts = next(
            (n for n in range(1, _MOST_PARTS + 1) if size % n == 0 and by_width.get(size // n) == more // n), 0
        )
        if parts == 0:
            raise ValueError(f"{name} has {size} units, which no layer takes")
        yield name, axis, parts


def _widened(model: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        made = type(model)(config)
    state, fresh = model.state_dict(), made.state_dict()
    changes = {name: (axis, parts) for name, axis, parts in _wider(state, {x: y.shape for x, y in fresh.items()})}
    for name, (axis, parts) in changes.items():
        old = state[name].detach()
        new = (torch.zeros_like(fresh[name]) if axis == 1 else fresh[name].clone()).to(old)
        for before, after in zip(old.chunk(parts, axis), new.chunk(parts, axis), strict=True):
            after.narrow(axis, 0, before.shape[axis]).copy_(before)
        state[name] = new
    made.load_state_dict(state, assign=True)
    # A decoder may have its words for what it reads and for what it writes once.
    made.tie_weights()
    made.to(model.device)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(trained[name])
    return made.train(model.training)

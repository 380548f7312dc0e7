"""What the mechanisms do, in the logs of a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..hardening import encoders_with_mixture, mixing_of
from ..modeling.injection_hf_lam import _dense_padding_mask, _valid_tokens, injected_encoders, views_of
from ..observing import evaluation_mode, observing, run_batches
from .callbacks import ReportingCallback


class MechanismLoggingCallback(ReportingCallback):
    """Log what the mechanisms do, with every training log (those that hold `loss`).

    - `lam/mask_spread/layer_{i}`, or `lam/mask_spread` of a shared mask: the standard deviation of the mask's entries
      for `inputs`, over all samples, heads and pairs of real tokens: padding is left out, and of a fusion model the
      modalities that a sample does not have. It is 0 as long as all entries are 1.
    - `stt/mixing/layer_{i}/head_{h}`: `λ`, the share of the synthetic map in a mixture, from 0 to 1.
    - `locomt/views/layer_{i}/{view}`: how many heads have that view in the table of views, in the first log and again
      whenever the table has changed; while annealing, too, when they still see more.
    - `mechanism_learning_rate`: the learning rate of that step of the optimizer's group with `"is_mechanism": True`,
      where it differs from that of others.

    Nothing is added for a model without mechanisms. Masks cost a forward pass with `inputs` in evaluation mode, which
    draws no random numbers, so a training with this callback is the same as without. With FSDP all processes have to
    take part in it, and they do: every one of them logs.

    The entries are added in `state.log_history` and for the callbacks that come after this one; with `HfLamTrainer`
    also to `report_to`, whose callbacks come before otherwise.

    Args:
        inputs: one batch, the same for the whole training: what the model is called with, a few samples are enough.
            Only learnable attention masks need it.

    Raises:
        TypeError: if `inputs` is no mapping.
        ValueError: when training begins, if the model has learnable attention masks and no inputs were given, or has
            mechanisms in several encoders.
    """

    def __init__(self, inputs: Mapping[str, Any] | None = None) -> None:
        if inputs is not None and not isinstance(inputs, Mapping):
            raise TypeError(
                "inputs must be a mapping that the model is called with, such as {'input_ids': ...}, got "
                f"{type(inputs).__name__}."
            )
        self.inputs = inputs
        self._learning_rate: float | None = None
        self._views: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model: nn.Module = kwargs["model"]
        encoders = injected_encoders(model)
        if len(encoders) > 1:
            raise ValueError(
                f"{type(model).__name__} has hf_lam mechanisms in {len(encoders)} encoders, MechanismLoggingCallback "
                "logs those of one."
            )
        if self.inputs is None and any(base._hf_lam_configs.lam is not None for base in encoders):
            raise ValueError(
                f"{type(model).__name__} has learnable attention masks, and what they are depends on the input: give "
                "MechanismLoggingCallback(inputs=...) a few samples as the model is called with them."
            )
        self._views = {}
        # Inputs that do not fit should show now, and not at the first log.
        self._of_mechanisms(model)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Where `Trainer` takes its `learning_rate`, too: the scheduler has gone on by the time of the log.
        groups = kwargs["optimizer"].param_groups
        # Those that the schedule starts from: during a warmup all are 0 at first.
        peaks = {group.get("initial_lr", group["lr"]) for group in groups}
        rates = [float(group["lr"]) for group in groups if group.get("is_mechanism")]
        self._learning_rate = rates[0] if rates and len(peaks) > 1 else None

    def entries(self, state: TrainerState, logs: dict[str, Any], **kwargs: Any) -> dict[str, float]:
        if "loss" not in logs:
            return {}
        found = self._of_mechanisms(kwargs["model"])
        views = table_of_views(kwargs["model"])
        if views != self._views:
            found |= views
            self._views = views
        if self._learning_rate is not None:
            found["mechanism_learning_rate"] = self._learning_rate
        return found

    def _of_mechanisms(self, model: nn.Module) -> dict[str, float]:
        found: dict[str, float] = {}
        for base in injected_encoders(model):
            configs = base._hf_lam_configs
            if configs.lam is not None:
                assert self.inputs is not None
                spreads = mask_spreads(model, base, self.inputs)
                if configs.lam.scope == "shared":
                    found["lam/mask_spread"] = spreads[0]
                else:
                    found |= {f"lam/mask_spread/layer_{i}": spread for i, spread in enumerate(spreads)}
        for base in encoders_with_mixture(model):
            for i, heads in enumerate(mixing_of(base).tolist()):
                found |= {f"stt/mixing/layer_{i}/head_{h}": value for h, value in enumerate(heads)}
        return found


def table_of_views(model: nn.Module) -> dict[str, float]:
    """How many heads of every layer have which view."""
    return {
        f"locomt/views/layer_{i}/{view}": number
        for base in injected_encoders(model)
        if base._hf_lam_configs.locomt is not None
        for i, views in enumerate(views_of(base).config.views)
        for view, number in Counter(views).items()
    }


def mask_spreads(model: nn.Module, base: Any, inputs: Mapping[str, Any]) -> list[float]:
    """The standard deviation of the entries of the mask between real tokens, in every layer.

    Args:
        model: a model whose encoder `base` has learnable attention masks. It is left as it was.
        inputs: what it is called with; numbers with a fraction are brought to its dtype.
    """
    spreads: dict[int, float] = {}

    class Measuring:
        """Stands in for the call of one attention layer."""

        def __init__(self, call: Any) -> None:
            self.call = call

        def attend(
            self, query: Tensor, key: Tensor, value: Tensor, mask: Any, *rest: Any
        ) -> tuple[Tensor, Tensor | None]:
            padding = _dense_padding_mask(mask, query, key)
            batch, _, length, _ = query.shape
            is_token = None if padding is None else _valid_tokens(padding, batch, length)
            spreads[self.call.layer_index] = _spread(self.call.mask, is_token)
            return self.call.attend(query, key, value, mask, *rest)

    # As Trainer does for DeepSpeed, whose models are in half precision as a whole.
    batch = {
        name: x.to(base.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in inputs.items()
    }
    with torch.no_grad(), evaluation_mode(model), observing(base, Measuring):
        run_batches(model, base, [batch])
    return [spreads[index] for index in sorted(spreads)]


def _spread(mask: Tensor, is_token: Tensor | None) -> float:
    """Of the entries of `(B, 1 or H, L, L)` whose row and column are tokens, `(B, L)` bool; None is all of them."""
    mask = mask.cpu().double()
    if is_token is not None:
        is_token = is_token.cpu()
        is_pair = is_token[:, None, :, None] & is_token[:, None, None, :]
        mask = mask[is_pair.expand_as(mask)]
    return float(mask.std(correction=0))

"""Callbacks that move a model from its original attention to a mechanism during training."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..locomt.views import set_views
from ..modeling.injection_hf_lam import InjectedEncoder, encoders_with, injection_of, mechanism_of
from ..modeling.locomt_hf_lam import LocomtConfig
from ..modeling.stt_config_hf_lam import SttConfig
from ..stt.hardening import encoders_with_mixture, mixing_of, plan_hardening
from ..stt.hardening import harden as harden
from .callbacks import AnnealingCallback, grow_linearly

logger = logging.get_logger(__name__)


def penalty_at(progress: float, start: float = 0.0, end: float = 0.8, max_penalty: float = 30.0) -> float:
    """The penalty `μ` on scores outside of the views, after a fraction of the training.

    Args:
        progress: steps done, as a fraction of all steps, in [0, 1].
        start: fraction up to which `μ` is 0.
        end: fraction from which `μ` is `max_penalty`; in between it grows linearly.
        max_penalty: the last `μ`, in units of the attention scores (natural logarithm of the weights' ratio).

    Examples:
        >>> from hf_lam.training import penalty_at
        >>> [penalty_at(progress) for progress in (0.0, 0.4, 0.8, 1.0)]
        [0.0, 15.0, 30.0, 30.0]
    """
    return grow_linearly(progress, start, end, max_penalty)


class ViewAnnealingCallback(AnnealingCallback):
    """Move a model from full attention to its attention views during training, without a jump.

    The model has `LocomtConfig(views=..., annealing=True)` and starts as the original model. Scores outside of the
    views get `−μ`; `μ` grows linearly with the step, from 0 to `max_penalty`. Then the block form replaces it by
    `hf_lam.set_views`: weights outside of the views are at most `e^−max_penalty` by then, so the outputs stay as they
    are, and from there on the model costs what its views show. What is saved afterwards is a plain model with views.

    `μ` depends on `state.global_step` alone, so a resumed run goes on where it was; resume with a model made as for
    the first run, with `annealing=True`, even after the switch. A checkpoint written on the way holds its `μ` and
    loads with `from_pretrained`. With PEFT, load the final adapter on a base model with `annealing=False`, or merge.

    `attention_view_penalty` is added to the logs, in `state.log_history` and for the callbacks that come after this
    one; with `HfLamTrainer` also to `report_to`, whose callbacks come before otherwise.

    Args:
        start: fraction of all steps until which the model stays as it is.
        end: fraction of all steps at which the views are reached and the block form takes over.
        max_penalty: the last `μ`, in units of the attention scores.

    Raises:
        ValueError: for fractions that are not `0 <= start < end <= 1`, or a `max_penalty` that is not positive and
            finite; when training begins, if the model does not have annealing views in exactly one encoder.
    """

    log_name = "attention_view_penalty"
    goal = "the attention views were reached"
    advice = (
        "Its weights now run with the views, which is not what was evaluated. Evaluate again, or choose the best "
        "model among later checkpoints."
    )

    needs = "views are with '{\"annealing\": true}'"

    def __init__(self, start: float = 0.0, end: float = 0.8, max_penalty: float = 30.0) -> None:
        super().__init__(start, end)
        if not 0 < max_penalty < math.inf:
            raise ValueError(f"max_penalty must be positive and finite, got {max_penalty}; 30 is exact in fp32.")
        self.max_penalty = max_penalty

    @staticmethod
    def is_needed(model: nn.Module) -> bool:
        return bool(_encoders_annealing_views(model))

    def penalty(self, state: TrainerState) -> float:
        """`μ` after the steps done so far."""
        return self.grow(state, self.max_penalty)

    logged = penalty

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model: nn.Module = kwargs["model"]
        encoders, annealing = encoders_with(model, LocomtConfig.name), _encoders_annealing_views(model)
        # A model loaded from a checkpoint that was written after the switch has nothing left to anneal.
        if len(encoders) != 1 or not (annealing or self.progress(state) >= self.end):
            raise ValueError(
                f"{type(model).__name__} has attention views that are annealing in {len(annealing)} encoders, "
                "ViewAnnealingCallback needs one: give it LocomtConfig(views=..., annealing=True)."
            )
        super().on_train_begin(args, state, control, **kwargs)

    def follow(self, model: nn.Module, state: TrainerState) -> None:
        for base in _encoders_annealing_views(model):
            if self.progress(state) >= self.end:
                set_views(base, replace(_views_of(base), annealing=False))
            else:
                with torch.no_grad():
                    mechanism_of(base, LocomtConfig.name).penalty.fill_(self.penalty(state))


def _encoders_annealing_views(model: nn.Module) -> list[Any]:
    return [base for base in encoders_with(model, LocomtConfig.name) if _views_of(base).annealing]


def _views_of(base: InjectedEncoder) -> LocomtConfig:
    return injection_of(base).configs[LocomtConfig.name]


class SttAnnealingCallback(AnnealingCallback):
    """Move a model from its dot products to synthesised attention during training, without a jump.

    The model has `SttConfig(variant="mixture")` and starts as the original model, with `λ = 0` in every head. `λ`
    grows linearly with the step, to exactly 1 at `end`; from there on `hf_lam.harden(model)` leaves the pure STT with
    the same outputs. Do that after training: until then the optimizer holds the projections that it drops.

    `λ` depends on `state.global_step` alone, so a resumed run goes on where it was, and a checkpoint holds its `λ`. At
    `λ = 0` the synthesizers get no gradient, so with a `start` beyond 0 they begin to learn there;
    `hf_lam.fit_synthesizers` starts them from the model's own attention before training.

    `attention_mixing` is added to the logs, in `state.log_history` and for the callbacks that come after this one;
    with `HfLamTrainer` also to `report_to`, whose callbacks come before otherwise.

    Args:
        start: fraction of all steps until which the model stays as it is.
        end: fraction of all steps at which `λ` is 1. The synthetic map alone has to learn after that, while the
            learning rate still allows it; in short trainings an earlier end than the default can be much better.

    Raises:
        ValueError: for fractions that are not `0 <= start < end <= 1`; when training begins, if the model has no
            mixture, or trains its `λ` itself (`train_mixing=True`).
    """

    log_name = "attention_mixing"
    goal = "λ reached 1"
    advice = "hf_lam.harden needs a later one: choose the best model among the checkpoints after that step."

    needs = 'synthetic maps with \'{"variant": "mixture"}\''

    def __init__(self, start: float = 0.0, end: float = 0.5) -> None:
        super().__init__(start, end)

    @staticmethod
    def is_needed(model: nn.Module) -> bool:
        # One that has arrived at its synthetic map stays there.
        mixtures = encoders_with_mixture(model)
        return _is_annealed(mixtures) and any(bool((mixing_of(base) < 1).any()) for base in mixtures)

    def mixing(self, state: TrainerState) -> float:
        """`λ` after the steps done so far."""
        return self.grow(state, 1.0)

    logged = mixing

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model: nn.Module = kwargs["model"]
        encoders = encoders_with_mixture(model)
        if not encoders:
            raise ValueError(
                f"{type(model).__name__} has no mixture, SttAnnealingCallback needs one: give it "
                "SttConfig(variant='mixture')."
            )
        if any(_trains_mixing(base) for base in encoders):
            raise ValueError(
                f"{type(model).__name__} trains its λ itself (train_mixing=True), which SttAnnealingCallback would "
                "overwrite. Use one of the two."
            )
        for base in encoders:
            try:
                plan_hardening(base)
            except ValueError as error:
                logger.warning(f"This mixture can be annealed, but hf_lam.harden will refuse it: {error}")
        super().on_train_begin(args, state, control, **kwargs)

    def follow(self, model: nn.Module, state: TrainerState) -> None:
        for base in encoders_with_mixture(model):
            with torch.no_grad():
                for synthesizer in mechanism_of(base, SttConfig.name):
                    synthesizer.mixing.fill_(self.mixing(state))


def _is_annealed(mixtures: list[InjectedEncoder]) -> bool:
    return any(not _trains_mixing(base) for base in mixtures)


def _trains_mixing(base: InjectedEncoder) -> bool:
    return injection_of(base).configs[SttConfig.name].train_mixing


def check_hardening(model: nn.Module) -> None:
    """Say before a training what would be refused after it.

    Raises:
        ValueError: if the model has no annealed mixture, or it cannot be hardened.
    """
    mixtures = encoders_with_mixture(model)
    if not _is_annealed(mixtures):
        raise ValueError(
            "--harden drops the queries and keys of an annealed mixture, which this model does not have: "
            '--mechanism stt --mechanism_config \'{"variant": "mixture"}\'.'
        )
    for base in mixtures:
        plan_hardening(base)


# In the order in which a training runs them.
ANNEALING_CALLBACKS: tuple[type[ViewAnnealingCallback] | type[SttAnnealingCallback], ...] = (
    ViewAnnealingCallback,
    SttAnnealingCallback,
)

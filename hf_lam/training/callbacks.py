"""Callbacks for transformers' `Trainer`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..hardening import encoders_with_mixture, hardened
from ..modeling.injection_hf_lam import injected_encoders, mechanisms_of, set_views, views_of

logger = logging.get_logger(__name__)


def annealed(progress: float, start: float, end: float, last: float) -> float:
    """What grows linearly from 0 at `start` to `last` at `end`, after a fraction `progress` of the training."""
    return last if progress >= end else last * max(0.0, (progress - start) / (end - start))


def penalty_at(progress: float, start: float = 0.0, end: float = 0.8, max_penalty: float = 30.0) -> float:
    """The penalty `μ` on scores outside of the views, after a fraction of the training.

    Args:
        progress: steps done, as a fraction of all steps, in [0, 1].
        start: until then, `μ` is 0.
        end: from then on, `μ` is `max_penalty`; in between it grows linearly.
        max_penalty: the last `μ`, in units of the attention scores (natural logarithm of the weights' ratio).
    """
    return annealed(progress, start, end, max_penalty)


class ReportingCallback(TrainerCallback, ABC):
    """Adds entries of its own to the training's logs.

    They go to `state.log_history` and to the callbacks that come after this one. `Trainer` puts those of `report_to`
    before all others; `HfLamTrainer` lets a `ReportingCallback` run before them, so that its entries are reported too.
    """

    @abstractmethod
    def entries(self, state: TrainerState, logs: dict[str, Any], **kwargs: Any) -> dict[str, float]:
        """What to add to `logs`; `kwargs` are those of `on_log`, such as `model`."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or not state.max_steps:  # an evaluation before any training
            return
        added = self.entries(state, logs, **kwargs)
        # `Trainer` writes its history before it calls back.
        for entry in (logs, *state.log_history[-1:]):
            entry.update(added)


class _AnnealingCallback(ReportingCallback):
    """Move a model from its original attention to a mechanism between two fractions of the training.

    Everything follows from `state.global_step` alone, so a resumed run goes on where it was.
    """

    log_name: str
    goal: str
    advice: str

    def __init__(self, start: float, end: float) -> None:
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"start and end are fractions of all steps with 0 <= start < end <= 1, got start={start}, end={end}."
            )
        self.start, self.end = start, end

    @abstractmethod
    def follow(self, model: nn.Module, state: TrainerState) -> None:
        """Bring the model to where it should be after `state.global_step` steps."""

    @abstractmethod
    def logged(self, state: TrainerState) -> float:
        """What the logs show of it."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.follow(kwargs["model"], state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # At the end of a step rather than at the beginning of the next one, so that evaluation and checkpoints in
        # between see what belongs to their step.
        self.follow(kwargs["model"], state)

    def entries(self, state: TrainerState, logs: dict[str, Any], **kwargs: Any) -> dict[str, float]:
        return {self.log_name: self.logged(state)}

    def _progress(self, state: TrainerState) -> float:
        return state.global_step / state.max_steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        best = getattr(state, "best_global_step", None)
        if args.load_best_model_at_end and best is not None and best / state.max_steps < self.end:
            logger.warning(
                f"The best checkpoint, which was loaded, is of step {best}, before {self.goal} (step "
                f"{math.ceil(self.end * state.max_steps)} of {state.max_steps}). {self.advice}"
            )


class ViewAnnealingCallback(_AnnealingCallback):
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

    def __init__(self, start: float = 0.0, end: float = 0.8, max_penalty: float = 30.0) -> None:
        super().__init__(start, end)
        if not 0 < max_penalty < math.inf:
            raise ValueError(f"max_penalty must be positive and finite, got {max_penalty}; 30 is exact in fp32.")
        self.max_penalty = max_penalty

    def penalty(self, state: TrainerState) -> float:
        """`μ` after the steps done so far."""
        return penalty_at(self._progress(state), self.start, self.end, self.max_penalty)

    logged = penalty

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model: nn.Module = kwargs["model"]
        encoders = [base for base in injected_encoders(model) if base._hf_lam_configs.locomt is not None]
        annealing = [base for base in encoders if base._hf_lam_configs.locomt.annealing]
        # A model loaded from a checkpoint that was written after the switch has nothing left to anneal.
        if len(encoders) != 1 or not (annealing or self._progress(state) >= self.end):
            raise ValueError(
                f"{type(model).__name__} has attention views that are annealing in {len(annealing)} encoders, "
                "ViewAnnealingCallback needs one: give it LocomtConfig(views=..., annealing=True)."
            )
        super().on_train_begin(args, state, control, **kwargs)

    def follow(self, model: nn.Module, state: TrainerState) -> None:
        for base in injected_encoders(model):
            locomt = base._hf_lam_configs.locomt
            if locomt is None or not locomt.annealing:
                continue
            if self._progress(state) >= self.end:
                set_views(base, replace(locomt, annealing=False))
            else:
                with torch.no_grad():
                    views_of(base).penalty.fill_(self.penalty(state))


class SttAnnealingCallback(_AnnealingCallback):
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

    def __init__(self, start: float = 0.0, end: float = 0.5) -> None:
        super().__init__(start, end)

    def mixing(self, state: TrainerState) -> float:
        """`λ` after the steps done so far."""
        return annealed(self._progress(state), self.start, self.end, 1.0)

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
        if any(base._hf_lam_configs.stt.train_mixing for base in encoders):
            raise ValueError(
                f"{type(model).__name__} trains its λ itself (train_mixing=True), which SttAnnealingCallback would "
                "overwrite. Use one of the two."
            )
        for base in encoders:
            try:
                hardened(base)
            except ValueError as error:
                logger.warning(f"This mixture can be annealed, but hf_lam.harden will refuse it: {error}")
        super().on_train_begin(args, state, control, **kwargs)

    def follow(self, model: nn.Module, state: TrainerState) -> None:
        for base in encoders_with_mixture(model):
            container: Any = mechanisms_of(base)
            with torch.no_grad():
                for synthesizer in container.stt:
                    synthesizer.mixing.fill_(self.mixing(state))

"""Callbacks for transformers' `Trainer`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)


def grow_linearly(progress: float, start: float, end: float, last: float) -> float:
    """A value that grows linearly from 0 at `start` to `last` at `end`, after `progress` of the training."""
    return last if progress >= end else last * max(0.0, (progress - start) / (end - start))


class ReportingCallback(TrainerCallback, ABC):
    """Adds entries of its own to the training's logs.

    They go to `state.log_history` and to the callbacks that come after this one. `Trainer` puts those of `report_to`
    before all others; `HfLamTrainer` lets a `ReportingCallback` run before them, so that its entries are reported too.
    """

    @abstractmethod
    def entries(self, state: TrainerState, logs: dict[str, Any], **kwargs: Any) -> dict[str, float]:
        """Entries to add to `logs`; `kwargs` are those of `on_log`, such as `model`."""

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


class AnnealingCallback(ReportingCallback):
    """Move a model from its original attention to a mechanism between two fractions of the training.

    Everything follows from `state.global_step` alone, so a resumed run goes on where it was.

    Class attributes:
        log_name: name of the values that it adds to the logs.
        goal: what is reached at the end, and `advice`: what to do with a model from before.
        needs: sentence that names the option which gives a model something to anneal; it begins small and has no full
            stop.
    """

    log_name: ClassVar[str]
    goal: ClassVar[str]
    advice: ClassVar[str]
    needs: ClassVar[str]

    def __init__(self, start: float, end: float) -> None:
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"start and end are fractions of all steps with 0 <= start < end <= 1, got start={start}, end={end}."
            )
        self.start, self.end = start, end

    @staticmethod
    @abstractmethod
    def is_needed(model: nn.Module) -> bool:
        """Whether a model, before training, has something to anneal."""

    @abstractmethod
    def follow(self, model: nn.Module, state: TrainerState) -> None:
        """Bring the model to where it should be after `state.global_step` steps."""

    @abstractmethod
    def logged(self, state: TrainerState) -> float:
        """The value to log."""

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

    def progress(self, state: TrainerState) -> float:
        """The steps done, as a fraction of all."""
        return state.global_step / state.max_steps

    def grow(self, state: TrainerState, last: float) -> float:
        """A value that grows linearly from 0 at `start` to `last` at `end`."""
        return grow_linearly(self.progress(state), self.start, self.end, last)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        best = getattr(state, "best_global_step", None)
        if args.load_best_model_at_end and best is not None and best / state.max_steps < self.end:
            logger.warning(
                f"The best checkpoint, which was loaded, is of step {best}, before {self.goal} (step "
                f"{math.ceil(self.end * state.max_steps)} of {state.max_steps}). {self.advice}"
            )

"""Streams: where a pass over one goes on after a stop."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME


class WholePassCallback(TrainerCallback):
    """Counts a pass over a stream as a whole one when it ends.

    `Trainer` does not know how long a stream is, and counts every batch as one of `max_steps`.
    """

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.epoch is not None and not control.should_training_stop:
            state.epoch = float(math.ceil(state.epoch))


def position_in(checkpoint: str, accumulation_steps: int) -> tuple[int, int]:
    """The number of whole passes over a stream at a checkpoint, and of batches of the next one.

    Args:
        checkpoint: folder of the checkpoint.
        accumulation_steps: number of batches in a step.
    """
    state = json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    # For `Trainer`, a pass has the batches of all steps. The last step of these ends none.
    passes = (
        math.ceil(state["epoch"]) - 1 if state["global_step"] >= state["max_steps"] else math.floor(state["epoch"])
    )
    return passes, round((state["epoch"] - passes) * state["max_steps"] * accumulation_steps)

"""Checkpointing of activations, by the names that it has in the installed transformers.

Until 5.23 they said `gradient_checkpointing`; 5.24 says `activation_checkpointing`, and version 6 will say only that.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, TrainingArguments

_WORD = "activation" if hasattr(PreTrainedModel, "activation_checkpointing_enable") else "gradient"


def checkpoint_activations(model: Any, use_reentrant: bool, **options: Any) -> None:
    getattr(model, f"{_WORD}_checkpointing_enable")({"use_reentrant": use_reentrant}, **options)


def keep_activations(model: Any) -> None:
    getattr(model, f"{_WORD}_checkpointing_disable")()


def is_checkpointing(model: Any) -> bool:
    return bool(getattr(model, f"is_{_WORD}_checkpointing"))


def checkpointing_arguments(use_reentrant: bool) -> dict[str, Any]:
    """Of `TrainingArguments`, which got the new names in the same release."""
    word = "activation" if "activation_checkpointing" in TrainingArguments.__dataclass_fields__ else "gradient"
    return {f"{word}_checkpointing": True, f"{word}_checkpointing_kwargs": {"use_reentrant": use_reentrant}}

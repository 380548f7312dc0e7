"""Inputs of the heads of every family, with what they compute their losses from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helpers.families import VOCABULARY, Family


def labelled(family: Family, head: str) -> dict[str, Tensor]:
    """Inputs of a head with what it computes its loss from."""
    inputs, classes = family.inputs(), torch.tensor([2, 1])
    generator = torch.Generator().manual_seed(3)

    def draw(most: int, *shape: int) -> Tensor:
        return torch.randint(0, most, shape, generator=generator)

    if head == "PreTraining":
        return inputs | _PRETRAINING[family.title](draw)
    if head == "MultipleChoice":
        choices = {key: torch.stack([value, value], 1) for key, value in inputs.items()}
        return choices | {"labels": classes - 1}
    return (
        inputs
        | {
            "TokenClassification": lambda: {"labels": draw(3, 2, family.tokens)},
            "MaskedLM": lambda: {"labels": draw(VOCABULARY, 2, family.tokens)},
            "QuestionAnswering": lambda: {"start_positions": classes, "end_positions": classes + 1},
            "DocumentQuestionAnswering": lambda: {"start_positions": classes, "end_positions": classes + 1},
            "NextSentencePrediction": lambda: {"labels": classes - 1},
            "MaskedImageModeling": lambda: {"bool_masked_pos": draw(2, 2, 16).bool()},
            "SemanticSegmentation": lambda: {"labels": draw(3, 2, 16, 16)},
            "CTC": lambda: {"labels": 1 + draw(20, 2, 3)},
            "AudioFrameClassification": lambda: {"labels": torch.eye(3)[draw(3, 2, family.tokens)]},
        }.get(head, lambda: {"labels": classes})()
    )


def _masked_sound(draw: Any) -> dict[str, Tensor]:
    hidden = torch.zeros(2, 19, dtype=torch.bool)
    hidden[:, 2:6] = True
    return {"mask_time_indices": hidden, "sampled_negative_indices": draw(12, 2, 19, 2)}


_PRETRAINING: dict[str, Any] = {
    "BERT": lambda draw: {"labels": draw(VOCABULARY, 2, 12), "next_sentence_label": draw(2, 2)},
    "ERNIE": lambda draw: {"labels": draw(VOCABULARY, 2, 12), "next_sentence_label": draw(2, 2)},
    "ELECTRA": lambda draw: {"labels": draw(2, 2, 12)},
    "VideoMAE": lambda draw: {"bool_masked_pos": torch.tensor([[True, False] * 4] * 2)},
    "wav2vec 2.0": _masked_sound,
    "UniSpeech": lambda draw: {},
}

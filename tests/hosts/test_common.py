"""What transformers' own common tests (`ModelTesterMixin`) ask of a model class, asked of `HfLam…` classes.

One family of each kind: BERT-like, rotary with windows, images, images through a tower, sound, video. Each with the
dense mask or, on heads, one of low rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.common_behaviours import (
    Subject,
    compiles,
    draws_all_its_weights,
    exports,
    gives_new_heads_the_values_of_its_class,
    is_determined_by_its_weights,
    is_made_on_meta,
    is_spread_over_devices,
    is_the_same_eager_and_with_sdpa,
    keeps_its_configuration,
    keeps_only_parameters_and_buffers,
    loads_in_another_dtype,
    loads_with_other_shapes_if_told_to,
    loads_without_ties,
    resizes_its_vocabulary,
    retains_gradients_of_what_it_returns,
    returns_attentions,
    returns_hidden_states,
    returns_tuples_too,
    saves_and_loads,
    saves_in_shards_and_by_hand,
    says_what_a_checkpoint_lacks,
    takes_each_problem_type,
    takes_embeddings,
    takes_what_its_host_takes,
    ties_what_its_host_ties,
    trains,
)
from helpers.families import FAMILIES, Family

# The head of each family that is tried besides the encoder.
HEADS = {
    "roberta": "MaskedLM",
    "modernbert": "SequenceClassification",
    "dinov2": "ImageClassification",
    "siglip_vision": "ImageClassification",
    "wav2vec2": "CTC",
    "whisper": "AudioClassification",
    "vjepa2": "VideoClassification",
}


QUICK: list[Callable[[Subject, Path], None]] = [
    is_determined_by_its_weights,
    saves_and_loads,
    saves_in_shards_and_by_hand,
    says_what_a_checkpoint_lacks,
    gives_new_heads_the_values_of_its_class,
    is_made_on_meta,
    draws_all_its_weights,
    keeps_only_parameters_and_buffers,
    returns_attentions,
    returns_hidden_states,
    retains_gradients_of_what_it_returns,
    returns_tuples_too,
    takes_embeddings,
    resizes_its_vocabulary,
    ties_what_its_host_ties,
    loads_without_ties,
    trains,
    takes_each_problem_type,
    takes_what_its_host_takes,
    loads_with_other_shapes_if_told_to,
    loads_in_another_dtype,
    is_the_same_eager_and_with_sdpa,
    keeps_its_configuration,
    is_spread_over_devices,
]
SLOW: list[Callable[[Subject, Path], None]] = [compiles, exports]


# What has a meaning for some of them only.
ONLY: dict[Callable[[Subject, Path], None], Callable[[Family, str | None], bool]] = {
    # A tower's heads have another configuration than it has, and Whisper's encoder is no part that its heads load.
    gives_new_heads_the_values_of_its_class: lambda family, head: (
        head is not None and family.composite is None and family.model != "WhisperEncoder"
    ),
    takes_embeddings: lambda family, head: family.kind == "text",
    resizes_its_vocabulary: lambda family, head: family.kind == "text",
    loads_without_ties: lambda family, head: head == "MaskedLM",
    takes_each_problem_type: lambda family, head: head in ("SequenceClassification", "ImageClassification"),
    loads_with_other_shapes_if_told_to: lambda family, head: head is not None and head.endswith("Classification"),
}


def cases() -> Iterator[Any]:
    for asked in [*QUICK, *SLOW]:
        for name, head in HEADS.items():
            for kind in (None, head):
                if asked in ONLY and not ONLY[asked](FAMILIES[name], kind):
                    continue
                marks = [pytest.mark.slow] if asked in SLOW else []
                yield pytest.param(asked, name, kind, marks=marks, id=f"{asked.__name__}-{name}-{kind or 'encoder'}")


@pytest.mark.parametrize(("asked", "name", "head"), [*cases()])
def test_common(asked: Callable[[Subject, Path], None], name: str, head: str | None, tmp_path: Path) -> None:
    asked(Subject(name, head), tmp_path)

"""Every family with every head: `convert` makes the stock class with mechanisms of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoModelForImageClassification, DeiTForImageClassificationWithTeacher

import hf_lam
from helpers.families import FAMILIES, randomize
from helpers.family_labels import labelled
from helpers.hosts import perturb_mechanisms
from helpers.outputs import distance, outputs_of
from hf_lam import LamConfig, convert, mechanism_parameters
from hf_lam.modeling.configuration_hf_lam import config_class_of

TOLERANCE = 1e-5


# A pair of a family and a head that has no loss of its own, …
WITHOUT_LOSS = {("unispeech", "PreTraining")}
# … and one that makes nothing of what the last layer returns.
WITHOUT_LAST_LAYER = {("beit", "SemanticSegmentation")}


def pairs() -> Iterator[Any]:
    """One head of each family is quick, in turn; the others are slow."""
    for index, (name, family) in enumerate(FAMILIES.items()):
        for number, head in enumerate(family.heads):
            marks = [] if number == index % len(family.heads) else [pytest.mark.slow]
            yield pytest.param(name, head, marks=marks, id=f"{name}-{head}")


@pytest.mark.parametrize(("name", "head"), [*pairs()])
def test_a_head(name: str, head: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    stock, inputs = family.make(head), labelled(family, head)
    expected = outputs_of(stock, inputs)
    # Of low rank, as where tokens are dropped no other can be.
    converted = convert(stock, LamConfig(rank=3))
    assert type(converted) is getattr(hf_lam, f"HfLam{type(stock).__name__}")
    assert isinstance(converted, type(stock))
    assert dict(converted.named_parameters()).keys() >= dict(stock.named_parameters()).keys()
    assert distance(family, outputs_of(converted, inputs), expected) < TOLERANCE

    perturb_mechanisms(converted)
    moved = outputs_of(converted, inputs)
    assert distance(family, moved, expected) > 1e-5
    converted.save_pretrained(tmp_path)
    auto = getattr(transformers, f"AutoModelFor{head}")
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(converted)
    assert not any(info.values()), info
    assert distance(family, outputs_of(loaded, inputs), moved) < TOLERANCE

    if (name, head) not in WITHOUT_LOSS:
        loss = loaded(**inputs).loss
        loss.backward()
        assert loss.isfinite()
        gradients = [parameter.grad for parameter in mechanism_parameters(loaded)]
        if (name, head) in WITHOUT_LAST_LAYER:
            gradients = gradients[: len(gradients) * 3 // 4]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().max() > 0 for gradient in gradients)


def test_another_class_of_an_auto_class(tmp_path: Path) -> None:
    """`architectures` chooses among them, as for the stock classes."""
    family = FAMILIES["deit"]
    config = family.make_config("ImageClassification")
    stock, inputs = randomize(DeiTForImageClassificationWithTeacher(config)), family.inputs()
    expected = outputs_of(stock, inputs)
    converted = convert(stock, LamConfig())
    assert type(converted) is hf_lam.HfLamDeiTForImageClassificationWithTeacher
    converted.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(converted)
    assert distance(family, outputs_of(loaded, inputs), expected) < TOLERANCE


def test_the_table_has_every_head_that_there_is() -> None:
    for family in FAMILIES.values():
        offered = set(config_class_of(family.make_config().model_type).auto_classes.values())
        offered -= {f"HfLam{family.model}"}
        if family.composite is None:
            assert offered == {f"HfLam{family.head_class_name(head)}" for head in family.heads}, family.title

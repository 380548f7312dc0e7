"""HfLamTrainer with a teacher's hidden states."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import (
    BertForSequenceClassification,
    BertModel,
    FNetConfig,
    FNetForSequenceClassification,
    PreTrainedModel,
)

import hf_lam
from helpers.families import FAMILIES
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hf_lam_trainer import make_arguments, make_bert, make_teacher, trainer_of
from helpers.hosts import make_model
from helpers.lam_models import make_samples, stacked
from hf_lam import LamConfig, LocomtConfig
from hf_lam.training import HfLamTrainer
from hf_lam.training.distillation import distillation_loss, hidden_distillation_loss

FNET = {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 37, "hidden_dropout_prob": 0}


def reference(student: Any, teacher: Any, counts: torch.Tensor) -> torch.Tensor:
    """`2 − 2 cos`, as a mean over layers and tokens that count."""
    found = [
        2 - 2 * cosine_similarity(ours[counts].float(), its[counts].float(), dim=-1)
        for ours, its in zip(student, teacher, strict=True)
    ]
    return torch.stack(found).mean()


def test_the_loss_is_the_distance_of_vectors_of_length_one() -> None:
    student = [torch.randn(2, 5, 8, requires_grad=True) for _ in range(3)]
    teacher = [10 * torch.randn(2, 5, 8) for _ in range(3)]
    counts = torch.tensor([[True] * 5, [True, True, False, False, False]])
    expected = reference(student, teacher, counts)
    loss = hidden_distillation_loss(student, teacher, counts)
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student), strict=True):
        torch.testing.assert_close(found, wanted)
        assert not found[1, 2:].any()
    whole = hidden_distillation_loss(student, teacher)
    torch.testing.assert_close(whole, reference(student, teacher, torch.ones_like(counts)))
    half = [state.bfloat16() for state in teacher]
    assert hidden_distillation_loss(half, half).dtype == torch.float32
    assert hidden_distillation_loss(half, half).item() == 0
    teacher[0][1, 3] = torch.nan
    torch.testing.assert_close(hidden_distillation_loss(student, teacher, counts), expected)
    assert hidden_distillation_loss(student, teacher, torch.zeros_like(counts)).item() == 0


@pytest.mark.parametrize("shape", [(2, 5, 9), (2, 4, 8)])
def test_states_of_another_shape(shape: tuple[int, ...]) -> None:
    states = [torch.zeros(2, 5, 8)] * 2
    for teacher in (states[:1], [torch.zeros(shape)] * 2):
        with pytest.raises(ValueError, match="as many layers, of the same width, on the same tokens"):
            hidden_distillation_loss(states, teacher)


def loss_of(model: Any, teacher: Any, batch: dict[str, Any], folder: Path, **options: Any) -> torch.Tensor:
    """Of one batch in training mode, without dropout."""
    samples = [{}, {}]
    arguments = make_arguments(folder, hidden_distillation_weight=3.0, **options)
    trainer = HfLamTrainer(model=model, args=arguments, train_dataset=samples, teacher=teacher)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return trainer.compute_loss(model.train(), dict(batch))


@pytest.mark.parametrize("case", ["stock", "lam", "bottleneck", "checkpointed", "lora"])
def test_the_loss_of_texts_leaves_padding_out(case: str, tmp_path: Path) -> None:
    teacher = make_teacher()
    model = make_model(BertForSequenceClassification, "bert", num_labels=3)
    batch = stacked(make_samples(model, "bert", 4))
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][1:, 4:] = 0
    counts = batch["attention_mask"].bool()
    if case == "lam":
        model = hf_lam.convert(model, LamConfig())
    elif case == "bottleneck":
        length = batch["input_ids"].shape[1]
        segments = [["a", 4], ["b", length - 4]]
        model = hf_lam.convert(model, LocomtConfig(segments=segments, views="self", bottleneck_tokens=2))
    elif case == "checkpointed":
        model.gradient_checkpointing_enable()
    trained: Any = model
    if case == "lora":
        peft = pytest.importorskip("peft")
        trained = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    found = loss_of(trained, teacher, batch, tmp_path, distillation_weight=0.25)
    ours, its = model(**batch, output_hidden_states=True), teacher(**batch, output_hidden_states=True)
    states = [state[:, : counts.shape[1]] for state in ours.hidden_states]
    hidden = reference(states[1:], its.hidden_states[1:], counts)
    task, logits = cross_entropy(ours.logits, batch["labels"]), distillation_loss(ours.logits, its.logits, 2.0)
    torch.testing.assert_close(found, 0.75 * task + 0.25 * logits + 3 * hidden)
    found.backward()
    assert all(parameter.grad is not None for parameter in trained.parameters() if parameter.requires_grad)
    assert all(parameter.grad is None for parameter in teacher.parameters())


# Encoders that differ in what says which tokens count: nothing, a mask of waves, one of patches or texts.
@pytest.mark.parametrize("name", ["vit", "wav2vec2", "siglip2_vision", "modernbert"])
def test_the_loss_of_other_encoders(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model, teacher = family.make(), family.make(seed=1)
    batch = family.inputs()
    found = loss_of(model, teacher, batch, tmp_path)
    ours, its = (x(**batch, output_hidden_states=True).hidden_states[1:] for x in (model, teacher))
    batch_size, length = ours[0].shape[:2]
    counts = torch.ones(batch_size, length, dtype=torch.bool)
    if family.short is not None:
        counts[1, family.short :] = False
    torch.testing.assert_close(found, 3 * reference(ours, its, counts), rtol=1e-4, atol=1e-5)


def test_a_model_without_attention(tmp_path: Path) -> None:
    model, teacher = (FNetForSequenceClassification(FNetConfig(**FNET)) for _ in range(2))
    batch = {"input_ids": torch.arange(10).reshape(2, 5), "labels": torch.tensor([0, 1])}
    found = loss_of(model, teacher, batch, tmp_path, distillation_weight=0.0)
    ours, its = (x(**batch, output_hidden_states=True) for x in (model, teacher))
    counts = torch.ones(2, 5, dtype=torch.bool)
    expected = ours.loss + 3 * reference(ours.hidden_states[1:], its.hidden_states[1:], counts)
    torch.testing.assert_close(found, expected)


def test_the_loss_of_a_fusion_model_leaves_out_what_samples_lack(tmp_path: Path) -> None:
    model, teacher = make_fusion(hf_lam="lam"), make_fusion(seed=1)
    inputs = make_fusion_inputs()
    batch = {**inputs, "has_image": torch.tensor([True, False]), "labels": torch.tensor([0, 2])}
    found = loss_of(model, teacher, batch, tmp_path, distillation_weight=0.0)
    asked = {"output_hidden_states": True}
    ours, its = model(**batch, **asked), teacher(**batch, **asked)
    kept = {name: value for name, value in batch.items() if name != "labels"}
    counts = model.base_model(**kept).token_mask.bool()
    assert not counts.all()
    expected = ours.loss + 3 * reference(ours.hidden_states[1:], its.hidden_states[1:], counts)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_an_encoder_alone_learns_from_hidden_states(tmp_path: Path) -> None:
    teacher: PreTrainedModel = make_model(BertModel, "bert", seed=7, initializer_range=0.1)
    model = hf_lam.convert(copy.deepcopy(teacher), LocomtConfig(segments="token_type_ids", views="self"))
    samples = [{k: v for k, v in sample.items() if k != "labels"} for sample in make_samples(model, "bert", 16)]
    for sample in samples:
        sample["token_type_ids"][len(sample["token_type_ids"]) // 2 :] = 1
    trainer = trainer_of(
        model,
        tmp_path,
        samples,
        {"teacher": teacher},
        hidden_distillation_weight=1.0,
        max_steps=30,
        learning_rate=1e-3,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    def refused(message: str, model: Any, teacher: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            trainer_of(model, tmp_path, make_samples(make_bert(), "bert", 4), {"teacher": teacher}, **options)

    deeper, wider = make_teacher(num_hidden_layers=1), make_teacher(hidden_size=64)
    refused("teacher with num_hidden_layers=1", make_bert(), deeper, hidden_distillation_weight=1.0)
    refused("teacher with hidden_size=64", make_bert(), wider, hidden_distillation_weight=1.0)
    refused("with hidden_distillation_weight", make_model(BertModel, "bert"), make_teacher())
    refused("must be finite and not below 0", make_bert(), None, hidden_distillation_weight=-1.0)
    trainer_of(make_bert(), tmp_path, more={"teacher": deeper})

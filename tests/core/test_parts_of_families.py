"""Which part of a model of any family is its host, and which its head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.families import FAMILIES
from helpers.hosts import perturb_mechanisms
from hf_lam import LamConfig, convert, freeze_host, inject, load_mechanism, remove, save_mechanism
from hf_lam.mechanism_files import CONFIG_FILE


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("clip_vision", "ImageClassification", "clip_vision_model"),
        ("siglip2_vision", "ImageClassification", "siglip2_vision_model"),
        ("whisper", "AudioClassification", "whisper"),
        ("modernbert", "SequenceClassification", "modernbert"),
        ("dinov3_vit", None, "dinov3_vit"),
    ],
)
def test_the_host_is_the_encoder_of_a_task_model(name: str, head: str | None, kind: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = inject(family.make(head), LamConfig(rank=2))
    perturb_mechanisms(model)
    save_mechanism(model, tmp_path)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["host_model_type"] == kind
    with torch.no_grad():
        expected = model(**family.inputs())[0]
        for other in (family.make(head), remove(convert(family.make(head), LamConfig(rank=2)))):
            loaded = load_mechanism(other, tmp_path)
            torch.testing.assert_close(loaded(**family.inputs())[0], expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=f"were trained on a '{kind}'"):
        load_mechanism(FAMILIES["bert"].make(), tmp_path)


@pytest.mark.parametrize(
    ("name", "head", "trained"),
    [
        ("dinov3_vit", None, set()),
        ("dinov2", "ImageClassification", {"classifier"}),
        ("whisper", "AudioClassification", {"projector", "classifier"}),
        ("siglip_vision", "ImageClassification", {"classifier"}),
        ("wav2vec2", "AudioClassification", {"projector", "classifier"}),
        ("modernbert", "SequenceClassification", {"head", "classifier"}),
        ("vjepa2", "VideoClassification", {"pooler", "classifier"}),
    ],
)
def test_a_head_is_what_lies_around_the_pretrained_part(name: str, head: str | None, trained: set[str]) -> None:
    model = freeze_host(inject(FAMILIES[name].make(head), LamConfig(rank=2)), train_head=True)
    names = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert {key.partition(".")[0] for key in names if ".hf_lam." not in f".{key}"} == trained

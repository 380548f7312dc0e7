"""What looks at fusion layers, with vectors and with encoders of any length: calibration, logs, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import hf_lam
from helpers.fusion_encoders import ENCODERS
from helpers.fusion_vectors import COUNTS, FEATURES, make_vector_fusion, make_vectors
from hf_lam import HfLamFusionConfig, HfLamFusionModel, LamConfig, LocomtConfig, calibrate_views
from hf_lam.training import FusionCollator, MechanismLoggingCallback
from hf_lam.visualization import learned_masks, save_pictures

NAMES = tuple(FEATURES)


def alone(inputs: dict[str, torch.Tensor], sample: int) -> dict[str, torch.Tensor]:
    """One sample without its padding."""
    return {
        f"{name}_features": inputs[f"{name}_features"][sample : sample + 1, : COUNTS[name][sample]] for name in NAMES
    }


def expected_mass(model: Any, samples: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """What queries of one modality put on keys of another, by hand, over all queries: `(layers, H, m, m)`."""
    total, rows = 0.0, 0
    for sample in samples:
        with torch.no_grad():
            outputs = model(**sample, output_attentions=True)
        weights = torch.stack(outputs.attentions)[:, 0]
        of = torch.nn.functional.one_hot(outputs.modality_ids, len(NAMES)).float()
        total = total + torch.einsum("lhqk,qi,kj->lhij", weights, of, of)
        rows += len(of)
    assert isinstance(total, torch.Tensor)
    return total / rows


def test_calibration_is_that_of_the_samples_by_themselves() -> None:
    model = make_vector_fusion(HfLamFusionModel, hf_lam=(LamConfig(rank=2), LocomtConfig(views="full")))
    inputs = make_vectors()
    # Two samples; one without its padding, and one that lacks a modality.
    lacking = {**alone(inputs, 0), "has_words": torch.tensor([False])}
    config, report = calibrate_views(model, [inputs, alone(inputs, 1), lacking], 0.6)
    samples = [alone(inputs, 0), alone(inputs, 1), alone(inputs, 1)]
    samples.append({key: value for key, value in alone(inputs, 0).items() if not key.startswith("words")})
    found = torch.tensor(report.mass_of_pairs)
    assert (found - expected_mass(model, samples)).abs().max() < 1e-5
    assert (report.samples, report.segments) == (4, list(NAMES))
    assert 0 < report.flops_fraction <= 0.6
    hf_lam.set_views(model, config)
    assert model.config.hf_lam["locomt"]["views"] == report.views
    model(**inputs)


def test_calibration_takes_what_a_loader_of_rows_gives() -> None:
    model = make_vector_fusion(hf_lam="full")
    inputs = make_vectors()
    rows: list[dict[str, Any]] = [
        {**{key: value[0].numpy() for key, value in alone(inputs, sample).items()}, "labels": sample}
        for sample in (0, 1)
    ]
    rows.append({**rows[0], "words_features": None})
    _, report = calibrate_views(model, DataLoader(rows, batch_size=2, collate_fn=FusionCollator()))
    assert report.samples == 3
    assert report.total == pytest.approx(1)


def test_logs_are_of_what_counts() -> None:
    model, inputs = make_vector_fusion(hf_lam=(LamConfig(rank=2), LocomtConfig(views="half"))), make_vectors()
    inputs["has_words"] = torch.tensor([True, False])
    callback = MechanismLoggingCallback(inputs)
    nothing: Any = None
    callback.on_train_begin(nothing, nothing, nothing, model=model)
    found = callback.entries(nothing, {"loss": 1.0}, model=model)
    kept = [[*range(6), *range(6, 11), 11, 12], [*range(4), 11, 12]]
    for layer, masks in enumerate(learned_masks(model, inputs)):
        values = torch.cat([mask[:, which][:, :, which].flatten() for mask, which in zip(masks, kept, strict=True)])
        assert found[f"lam/mask_spread/layer_{layer}"] == pytest.approx(float(values.std(correction=0)), rel=1e-4)
    assert found["locomt/views/layer_0/cross:clips-words"] == 1


@pytest.mark.slow
def test_pictures_of_vectors_and_of_sound(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = make_vector_fusion(hf_lam=(LamConfig(rank=2), LocomtConfig(views="half")))
    captions = save_pictures(model, make_vectors(), tmp_path, sample=1)
    assert set(captions) == {"masks.png", "attention.png", "views.png", "view_blocks.png"}
    assert "an example of 9 tokens (4 of clips, 3 of words, 2 of summary)" in captions["masks.png"]
    assert "for an example of 9 tokens in 3 segments" in captions["view_blocks.png"]
    row = ENCODERS["whisper"]
    options: Any = {"features": {"clips": 6}, "hf_lam": {"lam": {"rank": 2}}, "num_hidden_layers": 1}
    sound = HfLamFusionModel(HfLamFusionConfig(audio_config=row.make_config(), **options)).eval()
    inputs = row.rename(row.inputs()) | {"clips_features": torch.randn(2, 3, 6)}
    captions = save_pictures(sound, inputs, tmp_path, sample=1)
    tokens = row.tokens[1]
    assert f"an example of {tokens + 3} tokens ({tokens} of audio, 3 of clips)" in captions["masks.png"]

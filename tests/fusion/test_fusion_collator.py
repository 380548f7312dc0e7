"""The collator of fusion models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import AutoProcessor, Trainer, TrainingArguments

from helpers.fusion_samples import TEXTS, make_fused, make_parts, process, raw, rows, samples_of, without
from hf_lam import HfLamFusionProcessor
from hf_lam.modeling.configuration_hf_lam_fusion import ENCODER_ARGUMENTS, feature_arguments
from hf_lam.training import FusionCollator
from hf_lam.training.collators import has_modality


@pytest.mark.parametrize("kind", ["pt", "np", None, "lists", "batched"])
def test_the_collator_makes_the_batch_that_the_processor_makes(processor, kind) -> None:
    inputs = without(raw(), text=[1], images=[0, 2], videos=[2])
    expected = process(processor, inputs)
    samples = samples_of(processor, inputs, kind if kind in ("pt", "np") else None)
    if kind == "lists":
        samples = [{name: np.asarray(values).tolist() for name, values in sample.items()} for sample in samples]
    elif kind == "batched":
        samples = [{name: np.asarray(values)[None] for name, values in sample.items()} for sample in samples]
    # A data set with columns has None where a sample has no value.
    samples[1] |= dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "has_text"))
    batch = FusionCollator(processor)(samples)
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(batch[name], tensor, atol=1e-6, rtol=0)
    # What the processor marked as missing is missing.
    again = FusionCollator(processor.tokenizer)(rows(expected))
    assert set(again) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(again[name], tensor)


def test_the_collator_pads_and_leaves_out(processor) -> None:
    samples = samples_of(processor, without(raw(), images=[0, 1, 2], audio=[0, 1, 2], videos=[0, 1]), "np")
    assert FusionCollator(processor, pad_to_multiple_of=16)(samples)["input_ids"].shape == (3, 16)
    batch = FusionCollator(processor)(samples[:2])
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
    assert batch["attention_mask"].sum(1).tolist() == [len(sample["input_ids"]) for sample in samples[:2]]
    for sample in samples:
        del sample["attention_mask"], sample["token_type_ids"]
    assert torch.equal(FusionCollator(processor)(samples[:2])["attention_mask"], batch["attention_mask"])
    others = [{**sample, "index": i, "path": "somewhere"} for i, sample in enumerate(samples)]
    collated = FusionCollator(processor)(others)
    assert collated["index"].tolist() == [0, 1, 2] and "path" not in collated


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], torch.long),
        ([np.int32(1), np.int32(2)], torch.long),
        ([torch.tensor(1), torch.tensor(2)], torch.long),
        ([0.5, 2.0], torch.float32),
        ([np.float64(0.5), np.float64(2)], torch.float32),
        ([[0.0, 1.0], [1.0, 0.0]], torch.float32),
        ([np.array([0.0, 1.0]), np.array([1.0, 0.0])], torch.float32),
        ([torch.tensor([0, 1]), torch.tensor([1, 0])], torch.long),
    ],
)
def test_the_collator_takes_labels(values: list[Any], dtype: torch.dtype) -> None:
    for key in ("labels", "label", "label_ids"):
        batch = FusionCollator()([{"pixel_values": np.zeros((3, 4, 4)), key: value} for value in values])
        assert set(batch) == {"pixel_values", "labels"}
        assert batch["pixel_values"].dtype == torch.float32
        assert batch["labels"].dtype == dtype
        np.testing.assert_array_equal(batch["labels"].numpy(), np.asarray([np.asarray(value) for value in values]))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"pixel_values": (3, 4, 4)}, {"label": 1}], r"samples \[1\] of the batch have no modality"),
        ([{"pixel_values": (3, 4, 4)}, {"pixel_values": (3, 4, 5)}], "pixel_values of the image samples"),
        ([{"video_values": (3, 4, 4)}], "video_values of one sample of video must have 4 axes"),
        ([{"audio_values": (2, 3, 32, 16)}], "audio_values of one sample of audio must have 1 or 2 or 3 axes"),
        (
            [{"audio_values": (32, 16)}, {"audio_values": (30, 15)}],
            "audio_values of the audio samples of a batch",
        ),
        ([{"audio_values": (32, 16)}, {"audio_values": (32,)}], "audio_values of the audio .* as many axes"),
        ([{"clips_features": (2, 4)}, {"clips_features": (2, 5)}], "clips_features of the clips samples of a batch"),
        ([{"clips_features": (1, 2, 2, 4)}], "clips_features of one sample of clips must have 1 or 2 axes"),
        ([{"clips_features": (2, 4), "clips_mask": [1, 1, 0]}], "clips_mask of sample 0 has 3 places"),
        (
            [{"clips_features": (2, 4), "clips_positions": [0, 1]}, {"clips_features": (1, 4)}],
            "clips: some samples have .*clips_positions, others only some",
        ),
        (
            [{"clips_features": (2, 4), "clips_positions": [0, 1, 2]}],
            "clips_positions of sample 0 has 3 places, .* 2",
        ),
        ([{"clips_features": ["a", "b"]}], "clips_features of one sample of clips must be numbers"),
        ([{"input_features": (80, 9)}], "input_features, .* call it audio_values"),
        ([{"clips_features": (2, 4), "label": ["a", "b"]}], "labels must be numbers"),
        ([{"input_ids": (5,)}], "without a tokenizer"),
        ([{"pixel_values": (3, 4, 4), "label": 1}, {"pixel_values": (3, 4, 4)}], "1 of 2 samples have labels"),
        (
            [{"pixel_values": (3, 4, 4), "label": 1.0}, {"pixel_values": (3, 4, 4), "label": [1.0, 2.0]}],
            "labels of a batch must have",
        ),
    ],
)
def test_the_collator_refuses_by_name(samples: list[dict[str, Any]], message: str) -> None:
    made = [
        {name: np.zeros(value) if isinstance(value, tuple) else value for name, value in sample.items()}
        for sample in samples
    ]
    with pytest.raises(ValueError, match=message):
        FusionCollator()(made)


def test_texts_with_different_inputs_are_refused(processor) -> None:
    samples = samples_of(processor, {"text": TEXTS}, None)
    del samples[1]["token_type_ids"]
    with pytest.raises(ValueError, match=r"text: some samples have .*token_type_ids"):
        FusionCollator(processor)(samples)


def test_trainer_with_missing_modalities(processor, tmp_path: Path) -> None:
    inputs = without(raw(), text=[1], images=[0, 2], videos=[1, 2], audio=[0, 1])
    samples = [{**sample, "label": i} for i, sample in enumerate(samples_of(processor, inputs, "np"))]
    model = make_fused()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model, arguments, FusionCollator(processor), samples, samples, processing_class=processor, compute_metrics=None
    )
    assert np.isfinite(trainer.train().training_loss)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not [name for name in unchanged if "classifier" in name or "fusion.encoder" in name]
    logits = torch.from_numpy(trainer.predict(samples).predictions)
    with torch.no_grad():
        for sample, expected in zip(samples, logits, strict=True):
            one = FusionCollator(processor)([sample])
            torch.testing.assert_close(model.eval()(**one).logits[0], expected, atol=1e-5, rtol=0)
    trainer.save_model(str(tmp_path / "saved"))
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "saved"), HfLamFusionProcessor)


# --- vectors ---------------------------------------------------------------------------------------------------------


def vectors(*lengths: int, size: int = 4) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal((length, size)).astype(np.float32) for length in lengths]


FORMS: dict[str, Any] = {
    "lists": lambda x: x.tolist(),
    "arrays": lambda x: x,
    "double": lambda x: x.astype(np.float64),
    "half": lambda x: x.astype(np.float16),
    "tensors": torch.from_numpy,
    "bfloat": lambda x: torch.from_numpy(x).bfloat16(),
    "of a table": lambda x: np.array([*x, None], object)[:-1],
    "batches of one": lambda x: x[None],
}


@pytest.mark.parametrize("form", FORMS)
def test_vectors_are_padded_and_masked_in_fp32(form: str) -> None:
    made = vectors(3, 1, 2)
    samples = [{"clips_features": FORMS[form](x), "clips_positions": list(range(5, 5 + len(x)))} for x in made]
    samples.insert(1, {"clips_features": None, "faces_features": FORMS[form](made[0])})
    batch = FusionCollator()(samples)
    assert set(batch) == {
        *("clips_features", "clips_mask", "clips_positions", "has_clips", "faces_features", "faces_mask", "has_faces")
    }
    assert batch["clips_features"].shape == (4, 3, 4) and batch["clips_features"].dtype == torch.float32
    assert batch["clips_mask"].tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert batch["clips_positions"].tolist() == [[5, 6, 7], [0, 0, 0], [5, 0, 0], [5, 6, 0]]
    assert batch["clips_positions"].dtype == torch.long
    assert batch["has_clips"].tolist() == [True, False, True, True]
    assert batch["has_faces"].tolist() == [False, True, False, False]
    tolerance = 1e-2 if form in ("half", "bfloat") else 1e-6
    for index, expected in zip((0, 2, 3), made, strict=True):
        row = batch["clips_features"][index]
        np.testing.assert_allclose(row[: len(expected)].numpy(), expected, atol=tolerance, rtol=tolerance)
        assert not row[len(expected) :].any()


NOTHING = [None, float("nan"), pd.NA, [], np.zeros((0, 4)), torch.zeros(0, 4), np.array([], object)]


@pytest.mark.parametrize("nothing", NOTHING, ids=lambda value: type(value).__name__)
def test_vectors_that_are_not_there(nothing: Any) -> None:
    there = {"clips_features": vectors(2)[0]}
    others = [
        {"clips_features": nothing},
        {"clips_features": vectors(2)[0], "has_clips": False},
        {"clips_features": vectors(2)[0], "clips_mask": [0, 0]},
        {"has_clips": pd.NA},
    ]
    samples = [{**other, "text_features": np.ones((1, 2))} for other in others]
    batch = FusionCollator()([*samples, there])
    assert batch["has_clips"].tolist() == [False] * 4 + [True]
    assert not batch["clips_features"][:4].any() and batch["clips_mask"].sum(1).tolist() == [0, 0, 0, 0, 2]
    assert set(FusionCollator()(samples)) == {"text_features", "text_mask"}
    assert not any(has_modality(sample, "clips", feature_arguments("clips")) for sample in samples)
    assert has_modality(there, "clips", feature_arguments("clips"))
    assert not has_modality(there, "image", ENCODER_ARGUMENTS["image"])


def test_masks_of_vectors_are_kept() -> None:
    first, second = vectors(3, 2)
    samples = [{"clips_features": first, "clips_mask": [1, 0, 1]}, {"clips_features": second}]
    assert FusionCollator()(samples)["clips_mask"].tolist() == [[1, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("kind", [None, "numpy", "torch"])
def test_half_precision_of_a_data_set_is_not_lost(kind: str | None) -> None:
    made = [x.astype(np.float16) for x in vectors(3, 1)]
    data = Dataset.from_dict({"clips_features": made, "label": [0, 1]}).with_format(kind)
    batch = FusionCollator()([data[0], data[1]])
    assert batch["clips_features"].dtype == torch.float32
    for row, expected in zip(batch["clips_features"], made, strict=True):
        np.testing.assert_array_equal(row[: len(expected)].numpy(), expected.astype(np.float32))


# --- sounds and patches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("has_mask", [True, False])
def test_spectrograms_are_padded_in_time(axis: int, has_mask: bool) -> None:
    """`(frames, mel bins)` and `(mel bins, frames)`, as many of one as of the other in one sample."""
    shapes = [(6, 8), (8, 8), (3, 8)]
    samples: list[dict[str, Any]] = []
    for shape in shapes:
        values = np.ones(shape if axis == 0 else shape[::-1])
        samples.append({"audio_values": values} | ({"audio_mask": [1] * (shape[0] - 1) + [0]} if has_mask else {}))
    samples.append({"input_ids": [1, 2]})
    batch = FusionCollator(make_parts()["tokenizer"])(samples)
    assert batch["audio_values"].shape == (4, 8, 8) and batch["audio_values"].dtype == torch.float32
    assert batch["audio_values"].sum((1, 2)).tolist() == [48, 64, 24, 0]
    counts = [5, 7, 2, 0] if has_mask else [6, 8, 3, 0]
    assert batch["audio_mask"].sum(1).tolist() == counts
    alone = FusionCollator()([samples[2]])
    assert alone["audio_values"].shape == ((1, 3, 8) if axis == 0 else (1, 8, 3))
    assert ("audio_mask" in alone) == has_mask


def test_waves_are_padded_and_images_of_sounds_are_not() -> None:
    batch = FusionCollator()([{"audio_values": np.ones(5)}, {"audio_values": np.ones((1, 3))}])
    assert batch["audio_values"].tolist() == [[1.0] * 5, [1, 1, 1, 0, 0]]
    assert batch["audio_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    batch = FusionCollator()([{"audio_values": np.ones((3, 8, 8))}] * 2)
    assert batch["audio_values"].shape == (2, 3, 8, 8) and "audio_mask" not in batch
    # With one channel, too; what a feature extractor made has no channels, but may have an axis for the batch.
    samples = [{"audio_values": np.ones((1, 32, 16))}] * 2
    assert FusionCollator()(samples)["audio_values"].shape == (2, 1, 32, 16)
    assert FusionCollator(HfLamFusionProcessor(**make_parts()))(samples)["audio_values"].shape == (2, 32, 16)


def test_patches_have_their_own_number() -> None:
    samples = [
        {"pixel_values": np.ones((count, 12)), "spatial_shapes": shape, "label": 0}
        for count, shape in ((4, [2, 2]), (6, [2, 3]))
    ]
    samples.append({"clips_features": np.ones((1, 2)), "label": 1})
    batch = FusionCollator()(samples)
    assert batch["pixel_values"].shape == (3, 6, 12)
    assert batch["image_mask"].sum(1).tolist() == [4, 6, 0]
    assert batch["spatial_shapes"].tolist() == [[2, 2], [2, 3], [0, 0]]
    # A picture with one channel is not a picture of patches.
    grey = FusionCollator()([{"pixel_values": np.ones((1, 4, 4))}] * 2)
    assert grey["pixel_values"].shape == (2, 1, 4, 4) and "image_mask" not in grey


# --- labels of positions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[1, 0, 1], [1], []], [[1, 0, 1], [1, -100, -100], [-100, -100, -100]]),
        ([np.array([1, 0, 1]), torch.tensor([1]), np.zeros(0)], [[1, 0, 1], [1, -100, -100], [-100, -100, -100]]),
        ([[0.5, 1.0, 2.0], [1], []], [[0.5, 1.0, 2.0], [1.0, None, None], [None, None, None]]),
        (
            [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]], []],
            [[[1, 0], [0, 1]], [[1, 1], [None, None]], [[None, None], [None, None]]],
        ),
        ([[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 4], [5, 6]]),
    ],
)
def test_labels_of_several_lengths_are_padded(labels: list[Any], expected: Any) -> None:
    samples = [{"clips_features": x, "labels": y} for x, y in zip(vectors(3, 1, 1), labels, strict=True)]
    made = FusionCollator()(samples)["labels"]
    wanted = torch.tensor(pd.DataFrame({"x": np.array(expected, dtype=object).ravel()})["x"].astype(float).to_numpy())
    wanted = wanted.view(made.shape).to(made.dtype)
    assert made.dtype in (torch.long, torch.float32)
    torch.testing.assert_close(made, wanted, equal_nan=True)


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_are_as_long_as_what_is_labelled(side: str) -> None:
    """In step: the words of a text, and a vector for each; a sample lacks one, and another has more."""
    tokenizer = make_parts()["tokenizer"]
    tokenizer.padding_side = side
    samples: list[dict[str, Any]] = [
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "clips_features": vectors(3)[0], "labels": [0, 1, 2]},
        {"clips_features": vectors(5)[0], "labels": [1, 1, 1, 1, 1], "faces_features": vectors(2)[0]},
        {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [2, 2]},
    ]
    collate = FusionCollator(tokenizer, pad_to_multiple_of=4, label_modalities=["text", "clips"])
    batch = collate(samples)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["clips_mask"].shape == (3, 8)
    assert batch["faces_mask"].shape == (3, 2)
    assert torch.equal(batch["labels"] != -100, (batch["attention_mask"] | batch["clips_mask"]).bool())
    assert batch["labels"].sum(1).tolist() == [3 - 500, 5 - 300, 4 - 600]
    assert batch["labels"][0, 0 if side == "right" else -1] == (0 if side == "right" else 2)
    with pytest.raises(ValueError, match="a sample has 2 labels more than"):
        collate([{**samples[2], "labels": [1, 2, 3, 4]}])


def test_tokens_of_a_whole_modality_have_no_label() -> None:
    samples = [{"clips_features": x, "labels": [1] * (len(x) - 1)} for x in vectors(4, 2)]
    batch = FusionCollator(label_modalities=["clips"])(samples)
    assert batch["clips_mask"].shape == (2, 4) and batch["labels"].tolist() == [[1, 1, 1], [1, -100, -100]]

"""What the parts of a fusion model's processor make: texts, pictures, sounds and vectors, in all their forms."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import (
    SeamlessM4TFeatureExtractor,
    Siglip2ImageProcessor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from helpers.fusion_samples import RATE, TEXTS, raw
from hf_lam import HfLamFusionProcessor
from hf_lam.training import FusionCollator

# --- vectors ---------------------------------------------------------------------------------------------------------

FEATURES: dict[str, Any] = {
    "clips": {"size": 2, "max_length": 3, "mean": [1.0, 2.0], "std": [2, 0], "positions": "learned"},
    "faces": 3,
}


def test_vectors_are_cut_standardised_and_padded(parts) -> None:
    processor = HfLamFusionProcessor(tokenizer=parts["tokenizer"], features=FEATURES)
    assert processor.modalities == ["text", "clips", "faces"]
    assert processor.features == {
        "clips": {"size": 2, "max_length": 3, "mean": [1.0, 2.0], "std": [2, 0], "positions": "learned"},
        "faces": {"size": 3, "max_length": None, "mean": None, "std": None, "positions": "sinusoidal"},
    }
    given = {
        "features": {"clips": [np.full((4, 2), 5.0), None, [[1, 2]]], "faces": [None, torch.ones(2, 3), None]},
        "positions": {"clips": [[4, 5, 6, 7], None, [9]], "faces": [None, [0.5, 1.5], None]},
    }
    batch = processor(text=["a cat", None, "a cat"], **given, padding=True, return_tensors="pt")
    assert set(batch) == {*processor.model_input_names, "has_text", "has_clips", "has_faces"}
    # A place that is constant, whose standard deviation is 0, is not divided.
    assert batch["clips_features"].tolist() == [[[2, 3]] * 3, [[0, 0]] * 3, [[0, 0]] * 3]
    assert batch["clips_features"].dtype == batch["faces_features"].dtype == torch.float32
    assert batch["clips_mask"].tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert batch["clips_positions"].tolist() == [[4, 5, 6], [0, 0, 0], [9, 0, 0]]
    assert batch["faces_positions"].tolist() == [[0, 0], [0.5, 1.5], [0, 0]]
    assert batch["has_clips"].tolist() == [True, False, True]
    arrays = processor(text=["a cat", None, "a cat"], **given, padding=True, return_tensors="np")
    for name, tensor in batch.items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
        assert arrays[name].dtype == tensor.numpy().dtype
    lists = processor(text=["a cat", None, "a cat"], **given)
    assert [row.shape for row in lists["clips_features"]] == [(3, 2), (0, 2), (1, 2)]
    assert [row.shape for row in lists["faces_positions"]] == [(0,), (2,), (0,)]
    assert not any(name.endswith("_mask") and name != "attention_mask" for name in lists)
    # The types do not depend on what is there.
    none = processor(text=["a"], features={"clips": [None], "faces": [None]}, positions={"clips": [None]})
    for name, rows_of in none.items():
        assert np.asarray(rows_of[0]).dtype == np.asarray(lists[name][0]).dtype


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: x.tolist(),
        torch.from_numpy,
        lambda x: list(x),
        lambda x: [x],
        lambda x: x[None],
        lambda x: torch.from_numpy(x)[None],
        lambda x: pd.Series([x]),
        lambda x: pd.Series([np.array([*x, None], object)[:-1]]),
        lambda x: Dataset.from_dict({"x": [x]})["x"],
        lambda x: Dataset.from_dict({"x": [x]})[0]["x"],
        lambda x: Dataset.from_dict({"x": [x]}).with_format("numpy")[:]["x"],
    ],
)
def test_vectors_in_any_form(form: Any) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    batch = HfLamFusionProcessor(features={"faces": 3})(features={"faces": form(values)}, return_tensors="pt")
    np.testing.assert_array_equal(batch["faces_features"].numpy(), values[None])
    assert batch["faces_mask"].tolist() == [[1] * 4]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"clips": {"max_length": 3}}, "options of each modality of vectors .* got"),
        ({"clips": 0}, "options of each modality"),
        ([1], "options of each modality"),
        ({"Clips": 2}, "features cannot be called 'Clips'"),
        ({"input": 2}, "features cannot be called 'input'"),
        ({"clips": {"size": 2, "norm": True}}, r"features\['clips'\] may have max_length, mean, positions, size, std"),
        ({"clips": {"size": 2, "max_length": 0}}, r"features\['clips'\]: max_length must be an integer"),
        ({"clips": {"size": 2, "mean": [1.0]}}, r"features\['clips'\]: mean must be one of, or 2 numbers"),
        ({"clips": {"size": 2, "mean": "x"}}, r"features\['clips'\]: mean must be"),
        ({"clips": {"size": 2, "mean": [1.0, float("nan")]}}, "mean must be"),
        ({"clips": {"size": 2, "std": [1.0, -1.0]}}, "std must be .* not negative"),
        ({"clips": {"size": 2, "positions": "rotary"}}, "positions must be one of sinusoidal, learned"),
        ({"text": 2}, "text cannot be features and have a tokenizer"),
    ],
)
def test_options_of_vectors_are_checked(parts, features: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HfLamFusionProcessor(tokenizer=parts["tokenizer"], features=features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": {"clip": [[1.0, 2.0]]}}, "features has clip, .* its features are clips, faces"),
        ({"text": "a", "positions": {"clip": [1]}}, "positions has clip"),
        ({"text": "a", "positions": {"clips": [1]}}, "positions of clips were given without its features"),
        ({"features": {"clips": np.ones((2, 3))}}, r"clips: one sample must be of shape \(vectors, 2\), got \(2, 3\)"),
        ({"features": {"clips": [[1.0, float("nan")]]}}, "clips: a sample has numbers that are NaN"),
        ({"features": {"clips": [["a", "b"]]}}, "clips: one sample must have vectors of 2 numbers"),
        ({"features": {"clips": [[1.0, 2.0], [1.0]]}}, "clips: one sample must have vectors of 2 numbers"),
        ({"features": {"clips": [[1.0, 2.0]]}, "positions": {"clips": [1, 2]}}, "clips: positions must be one number"),
        ({"features": {"clips": [[1.0, 2.0]]}, "positions": {"clips": [0.5]}}, "learned must be whole numbers"),
        ({"features": {"clips": [[1.0, 2.0]]}, "positions": {"clips": None}}, "positions must be one number for each"),
        ({"features": {"clips": [None], "faces": [None]}}, r"samples \[0\] have no modality"),
        ({"text": ["a", "b"], "features": {"clips": [[[1.0, 2.0]]]}}, "different numbers of samples"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(parts, arguments: dict[str, Any], message: str) -> None:
    processor = HfLamFusionProcessor(tokenizer=parts["tokenizer"], features=FEATURES)
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


# --- today's extractors ----------------------------------------------------------------------------------------------


EXTRACTORS: dict[str, Any] = {
    "waves": Wav2Vec2FeatureExtractor,
    "waves of a model with group norms": lambda: Wav2Vec2FeatureExtractor(return_attention_mask=False),
    "mel bins, frames": lambda: WhisperFeatureExtractor(chunk_length=1),
    "frames, mel bins": SeamlessM4TFeatureExtractor,
}


@pytest.mark.parametrize("name", EXTRACTORS)
def test_a_sound_is_the_same_alone_and_among_others(name: str) -> None:
    extractor = EXTRACTORS[name]()
    processor = HfLamFusionProcessor(feature_extractor=extractor, features={"faces": 3})
    waves = [np.random.default_rng(i).standard_normal(n).astype(np.float32) for i, n in enumerate((7000, 3010, 1610))]
    given: dict[str, Any] = {"audio": [*waves, None], "features": {"faces": [np.ones((1, 3))] * 4}}
    longest = {"audio_kwargs": {"padding": "longest"}}
    batch = processor(**given, **longest, return_tensors="pt")
    assert batch["audio_mask"].shape[0] == 4 and batch["has_audio"].tolist() == [True] * 3 + [False]
    rows_of = processor(**given, **longest)
    assert ("audio_mask" in rows_of) == (rows_of["audio_values"][0].ndim == 2)
    samples = [{key: values[i] for key, values in rows_of.items()} for i in range(4)]
    collated = FusionCollator()(samples)
    assert set(collated) == set(batch)
    for key, tensor in batch.items():
        assert torch.equal(collated[key], tensor) and collated[key].dtype == tensor.dtype
    for i, wave in enumerate(waves):
        alone = processor(audio=wave, **longest, return_tensors="pt")
        key = extractor.model_input_names[0]
        expected = extractor([wave], sampling_rate=RATE, padding="longest", return_tensors="pt")[key]
        assert torch.equal(alone["audio_values"], expected)
        cut = tuple(slice(0, length) for length in expected.shape[1:])
        assert torch.equal(batch["audio_values"][i][cut], expected[0])
        assert batch["audio_mask"][i].sum() == alone["audio_mask"].sum()
        assert batch["audio_values"][i].count_nonzero() == expected[0].count_nonzero()


def test_sounds_of_one_size_have_a_mask_if_one_is_asked_for() -> None:
    """The window of Whisper, whose silence its encoder was trained to hear."""
    extractor = WhisperFeatureExtractor(chunk_length=1)
    processor = HfLamFusionProcessor(feature_extractor=extractor)
    assert processor.model_input_names == ["audio_values"]
    wave = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    batch = processor(audio=[wave], return_tensors="pt")
    expected = extractor(wave, sampling_rate=RATE, return_tensors="pt")["input_features"]
    assert set(batch) == {"audio_values"} and torch.equal(batch["audio_values"], expected)
    masked = processor(audio=[wave], audio_kwargs={"return_attention_mask": True}, return_tensors="pt")
    assert torch.equal(masked["audio_values"], expected) and masked["audio_mask"].sum() == 50
    waves = HfLamFusionProcessor(feature_extractor=Wav2Vec2FeatureExtractor())
    assert waves.model_input_names == ["audio_values", "audio_mask"]
    fixed = {"padding": "max_length", "max_length": 9000, "truncation": True}
    for kind in ("pt", None):
        made = waves(audio=[wave, wave[:100]], audio_kwargs=fixed, return_tensors=kind)
        assert [len(row) for row in made["audio_values"]] == [9000, 9000]
        assert [int(row.sum()) for row in made["audio_mask"]] == [8000, 100]


class Decoder:
    """As data sets give a sound, with torchcodec."""

    def __init__(self, waves: np.ndarray) -> None:
        self.waves = waves

    def get_all_samples(self) -> Any:
        return SimpleNamespace(data=torch.from_numpy(self.waves), sample_rate=RATE)


def test_sounds_in_other_forms(processor) -> None:
    wave = raw()["audio"][0]
    expected = processor(audio=wave, return_tensors="pt")["audio_values"]
    stereo = np.stack([wave + 1, wave - 1])
    for given in (Decoder(wave[None]), [Decoder(stereo)], np.array(wave, object), pd.Series([wave]), [[*wave]]):
        made = processor(audio=given, return_tensors="pt")["audio_values"]
        torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


def test_patches_come_with_their_mask_and_their_shape() -> None:
    part = Siglip2ImageProcessor(patch_size=4, max_num_patches=16)
    processor = HfLamFusionProcessor(image_processor=part, features={"faces": 3})
    assert processor.model_input_names[:3] == ["pixel_values", "image_mask", "spatial_shapes"]
    images = [*raw(2)["images"], None]
    given = {"images": images, "features": {"faces": np.ones((3, 1, 3))}}
    batch = processor(**given, return_tensors="pt")
    expected = part(images[:2], return_tensors="pt")
    assert torch.equal(batch["pixel_values"][:2], expected["pixel_values"])
    assert torch.equal(batch["image_mask"][:2], expected["pixel_attention_mask"].long())
    assert torch.equal(batch["spatial_shapes"][:2], expected["spatial_shapes"])
    assert not batch["image_mask"][2].any() and not batch["has_image"][2]
    made = processor(**given)
    collated = FusionCollator()([{name: values[i] for name, values in made.items()} for i in range(3)])
    assert set(collated) == set(batch)
    for name, tensor in batch.items():
        assert torch.equal(collated[name], tensor)


@pytest.mark.parametrize("frames", [1, 3])
def test_an_image_processor_takes_the_frames_of_videos(parts, frames: int) -> None:
    """Where a video processor needs torchvision, which is not there."""
    processor = HfLamFusionProcessor(video_processor=parts["image_processor"])
    videos = [video[:frames] for video in raw(2)["videos"]]
    made = processor(videos=[*videos], return_tensors="pt")["video_values"]
    assert made.shape == (2, frames, 3, 16, 16)
    for video, expected in zip(videos, made, strict=True):
        assert torch.equal(parts["image_processor"](video, return_tensors="pt")["pixel_values"], expected)
    with pytest.raises(ValueError, match="video samples of a batch must have one shape"):
        processor(videos=[videos[0], [*videos[1], videos[1][0]]])


def test_pictures_and_videos_of_nested_lists(processor) -> None:
    """As data sets give arrays that were put into them."""
    picture, video = np.asarray(raw(1)["images"][0]), np.stack(raw(1)["videos"][0])
    expected = processor(images=[picture], videos=[video], return_tensors="pt")
    for images, videos in ((picture.tolist(), video.tolist()), ([picture.tolist()], [video.tolist()])):
        made = processor(images=images, videos=videos, return_tensors="pt")
        for name, tensor in expected.items():
            assert torch.equal(made[name], tensor), name


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": "longest", "pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 12},
        {"padding": "max_length", "max_length": 4},
        {"padding": "max_length", "max_length": 4, "truncation": True},
        {"max_length": 4, "truncation": True},
        {"padding": True, "return_token_type_ids": False, "add_special_tokens": False},
    ],
)
def test_options_of_texts_mean_what_they_do_in_the_tokenizer(parts, side: str, options: dict[str, Any]) -> None:
    tokenizer = copy.deepcopy(parts["tokenizer"])
    tokenizer.padding_side = side
    processor = HfLamFusionProcessor(tokenizer=tokenizer, features={"faces": 3})
    expected = tokenizer(TEXTS, **options)
    made = processor(text=TEXTS, **options)
    assert set(made) == {*expected, "has_text"}
    for name, values in expected.items():
        assert made[name] == values
    # What is missing leaves nothing of another text behind.
    faces = [np.ones((1, 3))] * 3
    gap = processor(text=[TEXTS[0], None, ""], features={"faces": faces}, **options)
    one = tokenizer(TEXTS[:1], **options)
    for name, values in one.items():
        assert gap[name][0] == values[0]
    width = 1
    if "padding" in options:
        width = options["max_length"] if options["padding"] == "max_length" else len(one["input_ids"][0])
    assert gap["input_ids"][1:] == [[0] * width] * 2 and gap["attention_mask"][1:] == [[0] * width] * 2
    assert gap["has_text"] == [True, False, False]
    nothing = processor(text=None, features={"faces": faces[0]}, **options)
    assert set(nothing) == set(gap) and nothing["has_text"] == [False]
    assert not any(map(any, nothing["input_ids"])) and len(nothing["input_ids"][0]) >= 1

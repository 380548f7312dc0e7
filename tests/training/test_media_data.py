"""What is known of images, videos and audio before training: what cannot be read, and what the model could not use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import ASTFeatureExtractor

from helpers.media import sound
from hf_lam.training.media import read_audio
from hf_lam.training.media_data import prepare_media

RATE = 16000
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4000) / RATE)
BROKEN = np.where(np.arange(4000) == 7, np.nan, TONE)
EXTRACTOR = ASTFeatureExtractor(max_length=32, num_mel_bins=16)


def audio_data(folder: Path, **files: bytes) -> Dataset:
    for name, content in {"a": sound(TONE), "b": sound(-TONE), **files}.items():
        (folder / f"{name}.wav").write_bytes(content)
    return Dataset.from_dict({"audio": [f"{name}.wav" for name in ("a", *files, "b")]})


def prepared(
    dataset: Any, folder: Path, skip: bool = False, encode: Any = None, is_stream: bool = False
) -> list[dict[str, Any]]:
    data: Any = SimpleNamespace(
        **{f"{split}_file": str(folder / f"{split}.csv") for split in ("train", "validation", "test")},
        data_dir=None,
        skip_unreadable=skip,
        preprocessing_num_workers=None,
        max_train_samples=None,
        max_eval_samples=None,
        max_predict_samples=None,
        label_column_name="label",
        shuffle_buffer_size=1,
    )

    def read(row: dict[str, Any], root: str | None) -> np.ndarray:
        return read_audio(row["audio"], RATE, root=root)

    def extract(waveform: np.ndarray) -> dict[str, Any]:
        return {"input_values": EXTRACTOR(waveform, sampling_rate=RATE, return_tensors="np")["input_values"][0]}

    splits = {"test": dataset.to_iterable_dataset() if is_stream else dataset}
    return list(prepare_media(splits, read, encode or extract, None, data, 0)["test"])  # type: ignore[arg-type]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (sound(TONE[:100]), "cannot be made into inputs of the model"),
        (sound(TONE[:1]), "cannot be made into inputs of the model"),
        (sound(BROKEN, codec="pcm_f32le"), "NaN or infinite"),
        (sound(TONE)[:-2000], "ends early"),
        (b"", "Invalid data"),
    ],
    ids=["short", "one sample", "NaN", "cut off", "empty"],
)
def test_what_a_model_cannot_use_is_named_before_training(
    content: bytes, reason: str, is_stream: bool, tmp_path: Path
) -> None:
    dataset = audio_data(tmp_path, bad=content)
    with pytest.raises(ValueError, match=rf"bad\.wav.*{reason}.*--skip_unreadable"):
        prepared(dataset, tmp_path, is_stream=is_stream)
    samples = prepared(dataset, tmp_path, skip=True, is_stream=is_stream)
    expected = prepared(audio_data(tmp_path), tmp_path)
    assert len(samples) == 2
    for sample, other in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(sample["input_values"], other["input_values"])


def test_inputs_that_are_not_finite_are_found_whatever_made_them(tmp_path: Path) -> None:
    dataset = audio_data(tmp_path)
    with pytest.raises(ValueError, match=r"2 of 2 samples .*a\.wav.*its input_values would be NaN"):
        prepared(dataset, tmp_path, encode=lambda waveform: {"input_values": [float("inf")], "input_ids": [1]})


def test_a_fault_of_the_processor_is_no_damaged_file(tmp_path: Path) -> None:
    def lacks(waveform: np.ndarray) -> dict[str, Any]:
        raise ImportError("torchvision is needed")

    with pytest.raises(ImportError, match="torchvision"):
        prepared(audio_data(tmp_path), tmp_path, encode=lacks)

"""What is known of images, videos and audio before training: what cannot be read, and what the model could not use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import ASTFeatureExtractor

from helpers.media import sound
from hf_lam.training.arguments import MediaArguments
from hf_lam.training.media import UnreadableError, read_audio
from hf_lam.training.media_data import prepare_media

RATE = 16000
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4000) / RATE)
BROKEN = np.where(np.arange(4000) == 7, np.nan, TONE)
EXTRACTOR = ASTFeatureExtractor(max_length=32, num_mel_bins=16)


def audio_data(folder: Path, **files: bytes) -> Dataset:
    for name, content in {"a": sound(TONE), "b": sound(-TONE), **files}.items():
        (folder / f"{name}.wav").write_bytes(content)
    return Dataset.from_dict({"audio": [f"{name}.wav" for name in ("a", *files, "b")]})


def prepared_split(
    dataset: Any,
    folder: Path,
    skip: bool = False,
    encode: Any = None,
    is_stream: bool = False,
    max_checked_samples: int | None = None,
) -> Any:
    data: Any = SimpleNamespace(
        **{f"{split}_file": str(folder / f"{split}.csv") for split in ("train", "validation", "test")},
        data_dir=None,
        skip_unreadable=skip,
        preprocessing_num_workers=None,
        max_train_samples=None,
        max_eval_samples=None,
        max_predict_samples=None,
        max_checked_samples=max_checked_samples,
        label_column_name="label",
        shuffle_buffer_size=1,
    )

    def read(row: dict[str, Any], root: str | None) -> np.ndarray:
        return read_audio(row["audio"], RATE, root=root)

    def extract(waveform: np.ndarray) -> dict[str, Any]:
        return {"input_values": EXTRACTOR(waveform, sampling_rate=RATE, return_tensors="np")["input_values"][0]}

    splits = {"test": dataset.to_iterable_dataset() if is_stream else dataset}
    return prepare_media(splits, read, encode or extract, None, data, 0)["test"]  # type: ignore[arg-type]


def prepared(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
    return list(prepared_split(*args, **kwargs))


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


def test_a_part_of_the_files_may_be_read_before_training(tmp_path: Path) -> None:
    dataset = audio_data(tmp_path, bad=b"", good=sound(TONE / 2))
    split = prepared_split(dataset, tmp_path, max_checked_samples=2)
    assert len(split) == 4
    with pytest.raises(UnreadableError, match=r"bad\.wav"):
        split[1]
    with pytest.raises(ValueError, match=r"1 of 4 samples .*bad\.wav"):
        prepared_split(dataset, tmp_path, max_checked_samples=4)


def test_a_batch_is_its_rows(tmp_path: Path) -> None:
    split = prepared_split(audio_data(tmp_path, c=sound(TONE / 2)), tmp_path)
    (batch,) = DataLoader(split, batch_size=3, collate_fn=list)
    for row, other in zip(batch, split, strict=True):
        np.testing.assert_array_equal(row["input_values"], other["input_values"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_checked_samples": 0}, "--max_checked_samples must be at least 1, got 0"),
        ({"max_checked_samples": 5, "skip_unreadable": True}, "--skip_unreadable must read all samples"),
    ],
)
def test_how_many_samples_are_checked_is_checked(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        MediaArguments(data_dir=str(tmp_path), **options)


def test_rows_are_looked_at_as_they_are_read_later(tmp_path: Path) -> None:
    dataset = audio_data(tmp_path).add_column("clips", [[1.0], [2.0]])
    seen: list[Any] = []

    def encode(waveform: np.ndarray) -> dict[str, Any]:
        seen.append(waveform.shape)
        return {"input_values": waveform}

    # As vectors are read beside files: their columns alone are arrays.
    formatted = dataset.with_format("numpy", columns=["clips"], output_all_columns=True)
    split = prepared_split(formatted, tmp_path, encode=encode)
    assert len(seen) == 2 and len(list(split)) == 2

"""What is known of images, videos and audio before training: what cannot be read, and what the model could not use."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader
from transformers import ASTFeatureExtractor

from helpers.media import encoded, sound
from hf_lam.training.arguments import MediaArguments
from hf_lam.training.file_checks import may_be_readable, size_of, spread
from hf_lam.training.media import UnreadableError, read_audio, read_image
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


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve, numbered by their level: 0 and 8 are read first, as are 4 and 2 where there is room for four."""
    for level in range(12):
        (tmp_path / f"{level}.png").write_bytes(encoded(Image.new("L", (4, 4), level)))
    return tmp_path


def prepared_pictures(
    folder: Path, reads: list[int], encode: Any = None, value: Any = str, **options: Any
) -> Dataset | Any:
    def read(row: dict[str, Any], root: str | None) -> Any:
        reads.append(row["number"])
        return read_image(row["image"], root=str(folder), num_channels=1)

    def as_pixels(image: Any) -> dict[str, Any]:
        return {"pixel_values": np.asarray(image, dtype=np.float32)}

    names = [value(f"{level}.png") for level in range(12)]
    data = MediaArguments(data_dir=str(folder), **options)
    splits = {"test": Dataset.from_dict({"image": names, "number": list(range(12))})}
    return prepare_media(splits, read, encode or as_pixels, None, data, 0, files=["image"])["test"]  # type: ignore[arg-type]


def test_what_was_read_before_training_is_not_read_again(pictures: Path) -> None:
    reads: list[int] = []
    split = prepared_pictures(pictures, reads)
    assert sorted(reads) == list(range(12))
    for sample in split:
        sample["labels"] = 1
    (batch,) = DataLoader(split, batch_size=12, collate_fn=list)
    assert [sample["pixel_values"][0, 0] for sample in batch] == list(range(12))
    assert all(list(sample) == ["pixel_values"] for sample in batch)
    assert len(reads) == 12
    # A process that is started anew is sent no samples.
    copied = copy.copy(split)
    assert copied[5]["pixel_values"][0, 0] == 5 and reads[12:] == [5]


def in_a_dictionary(path: str) -> dict[str, Any]:
    return {"path": path, "bytes": None}


@pytest.mark.parametrize("value", [str, in_a_dictionary])
def test_what_there_is_no_room_for_is_looked_at(value: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_lam.training.media_data.KEPT_BYTES", 4 * 16 * 4)
    monkeypatch.setattr("hf_lam.training.file_checks._LEAST", 2)
    monkeypatch.setattr("hf_lam.training.file_checks._TOGETHER", 2)
    reads: list[int] = []
    assert len(prepared_pictures(pictures, reads, value=value)) == 12
    assert reads == [0, 8, 4, 2]
    (pictures / "1.png").unlink()
    (pictures / "3.png").write_bytes(b"")
    (pictures / "5.png").write_bytes(b"a text")
    (pictures / "7.png").write_bytes((pictures / "7.png").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"4 of 12 .*1\.png.*3\.png.*5\.png.*7\.png.*--skip_unreadable leaves"):
        prepared_pictures(pictures, reads, value=value)
    # One that is whole, and damaged.
    content = bytearray((pictures / "6.png").read_bytes())
    content[content.index(b"IDAT") + 6] ^= 255
    for level in (1, 3, 5, 6, 7):
        (pictures / f"{level}.png").write_bytes(bytes(content) if level == 6 else encoded(Image.new("L", (4, 4))))
    split = prepared_pictures(pictures, reads, value=value)
    with pytest.raises(UnreadableError, match=r"6\.png.*--skip_unreadable"):
        split[6]
    assert prepared_pictures(pictures, reads, value=value, skip_unreadable=True).rows == [*range(6), *range(7, 12)]
    reads.clear()
    prepared_pictures(pictures, reads, value=value, max_checked_samples=3)
    assert reads == [0, 8, 4]


@pytest.mark.parametrize(
    ("value", "shape", "found"),
    [
        (None, None, True),
        (np.zeros(3), None, True),
        ([[1.0, 2.0]], None, True),
        ("[[1.0, 2.0]]", None, True),
        ("https://example.org/a.png", None, True),
        (bytes(12), [3], True),
        (bytes(12), None, False),
        ("a.npy", None, True),
        ("absent.npy", None, False),
        (["a.png", {"path": "a.png", "bytes": None}], None, True),
        (["a.png", "absent.png"], None, False),
        (Path("a.png"), None, True),
        ({"array": [0.5], "sampling_rate": 8000}, None, True),
    ],
)
def test_which_values_look_as_if_they_could_be_read(value: Any, shape: Any, found: bool, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    (tmp_path / "a.png").write_bytes(encoded(Image.new("L", (4, 4))))
    assert may_be_readable(value, shape, str(tmp_path)) == found


def test_how_much_memory_a_sample_takes() -> None:
    sample = {"pixels": np.zeros((3, 50, 50), np.float32), "tokens": [1000.5] * 100, "labels": [["a"], ["b", "c"]]}
    assert 30000 + 100 * 30 < size_of(sample) < 30000 + 100 * 34 + 600


@pytest.mark.parametrize("total", [0, 1, 2, 12, 64, 1000])
def test_every_beginning_of_the_order_is_evenly_spread(total: int) -> None:
    order = spread(total)
    assert sorted(order) == list(range(total))
    for count in (1, 3, 10, 100):
        gaps = np.diff([-1, *sorted(order[:count]), total])
        assert count > total or gaps.max() <= 2 ** np.ceil(np.log2(total / count)) + 1


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

"""The data sets of captions that `examples/captions` makes out of real parts."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from transformers import AutoTokenizer

from helpers.scripts import script_module

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with script_module("captions/make_captions") as module:
        yield module


@pytest.mark.parametrize(
    ("asked", "shape", "color"),
    [
        ([("what color is the triangle?", "blue")], "triangle", "blue"),
        ([("what is the teal shape?", "circle")], "circle", "teal"),
        ([("is there a red shape?", "yes"), ("what shape is present?", "rectangle")], "rectangle", "red"),
        ([("is there not a red shape?", "no"), ("is no circle present?", "no")], "circle", "red"),
        # Of three shapes, the one that is not denied.
        ([("is there a circle?", "no"), ("does the image not contain a triangle?", "yes")], "rectangle", None),
        ([("is a red shape present?", "no"), ("is there a circle?", "no")], None, None),
        ([], None, None),
    ],
)
def test_shape_and_color_are_what_questions_and_answers_say(
    script: Any, asked: list[tuple[str, str]], shape: str | None, color: str | None
) -> None:
    assert script.read_answers(asked) == (shape, color)


def _picture(top: int, left: int, height: int, width: int) -> Image.Image:
    pixels = np.full((64, 64, 3), 240, np.uint8)
    pixels[top : top + height, left : left + width] = (255, 0, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("box", "size", "place"),
    [
        ((0, 0, 10, 10), "small", "at the top left"),  # in the corner, whose colour is then no background
        ((27, 2, 10, 10), "small", "on the left"),
        ((20, 20, 24, 22), "", "in the middle"),
        ((40, 20, 20, 30), "large", "at the bottom"),
        ((30, 30, 34, 34), "large", "at the bottom right"),
    ],
)
def test_size_and_place_are_measured(script: Any, box: tuple[int, int, int, int], size: str, place: str) -> None:
    assert script.measure(np.asarray(_picture(*box), dtype=np.int64)) == (size, place)


def _bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """Small tables of all three sources."""
    folders = {name: tmp_path / name for name in ("moving_digits", "easy_vqa", "spoken_words")}
    for folder in folders.values():
        folder.mkdir()
    for number, split in enumerate(SPLITS):
        clips = [
            {"video": bytes(64), "video_shape": [4, 4, 4], "digit": row % 10, "direction": row % 4}
            for row in range(12)
        ]
        Dataset.from_list(clips).to_parquet(folders["moving_digits"] / f"{split}.parquet")
        first = {"train": 0, "validation": 3, "test": 0}[split]
        questions = [
            {"image_id": first + row, "question": f"what color is the {shape}?", "answer": color}
            for row, (shape, color) in enumerate((("circle", "red"), ("triangle", "teal"), ("shape", "blue")))
        ]
        Dataset.from_list(questions).to_parquet(folders["easy_vqa"] / f"{split}.parquet")
        words = [
            {
                "word": f"{letter}{split}",
                "lesson": lesson,
                "image": {"bytes": _bytes(_picture(0, 0, number + 1, row + 1)), "path": None},
                "audio": {"bytes": f"{letter}{split}".encode(), "path": f"{letter}.ogg"},
            }
            for row, (letter, lesson) in enumerate((("d", "animal"), ("r", "action"), ("h", "clothes"), ("b", "job")))
        ]
        Dataset.from_list(words).to_parquet(folders["spoken_words"] / f"{split}.parquet")
    for name, count in (("images_train", 6), ("images_test", 3)):
        images = [
            {"image_id": row, "image": {"bytes": _bytes(_picture(0, 0, 10, 10)), "path": None}} for row in range(count)
        ]
        Dataset.from_list(images).to_parquet(folders["easy_vqa"] / f"{name}.parquet")
    return folders


def _make(script: Any, source: str, folder: Path, output: Path, *options: str) -> dict[str, Dataset]:
    arguments = ["--source", source, "--data_dir", str(folder), "--output_dir", str(output), *options]
    assert script.main(arguments) == 0
    return {split: Dataset.from_parquet(str(output / f"{split}.parquet")) for split in SPLITS}


def test_captions_of_videos_say_digit_and_direction(script: Any, sources: dict[str, Path], tmp_path: Path) -> None:
    made = _make(script, "moving_digits", sources["moving_digits"], tmp_path / "out")
    assert made["test"].column_names == ["video", "video_shape", "caption"]
    assert made["test"][8]["caption"] == [
        "an eight moves to the right",
        "the digit eight goes to the right",
        "eight is drifting to the right",
    ]
    assert made["validation"][3]["caption"][0] == "a three moves up"
    for row, caption in enumerate(made["train"]["caption"]):
        assert len(caption) == 1 and caption[0] in made["test"][row]["caption"]


def test_captions_of_pictures_are_those_of_which_all_is_known(
    script: Any, sources: dict[str, Path], tmp_path: Path
) -> None:
    made = _make(script, "easy_vqa", sources["easy_vqa"], tmp_path / "out")
    for split in SPLITS:
        assert len(made[split]) == 2  # the shape of the third is not said
    assert made["test"]["caption"][1] == [
        "a small teal triangle at the top left",
        "there is a small teal triangle at the top left",
        "at the top left you see a small teal triangle",
    ]


def test_captions_of_words_need_picture_and_sound(script: Any, sources: dict[str, Path], tmp_path: Path) -> None:
    made = _make(script, "spoken_words", sources["spoken_words"], tmp_path / "out", "--pairs", "2")
    things = {b"d": "an animal", b"h": "something to wear", b"b": "a person"}
    originals = Dataset.from_parquet(str(sources["spoken_words"] / "test.parquet"))
    of_image = {row["image"]["bytes"]: row["word"][:1].encode() for row in originals}
    assert len(made["test"]) == 6  # that of an action shows nothing that has a name
    for row in made["test"]:
        word = of_image[row["image"]["bytes"]]
        sound = row["audio"]["bytes"]
        assert sound.endswith(b"test") and sound[:1] != word
        assert row["caption"][0] == f"a picture of {things[word]} and a word that begins with {sound[:1].decode()}"


def test_the_same_seed_makes_the_same(script: Any, sources: dict[str, Path], tmp_path: Path) -> None:
    for source, folder in sources.items():
        tables = []
        for name, seed in (("one", "3"), ("two", "3"), ("three", "4")):
            made = _make(script, source, folder, tmp_path / f"{source}-{name}", "--seed", seed)
            tables.append([made[split].to_dict() for split in SPLITS])
        assert tables[0] == tables[1]
        words = [(tmp_path / f"{source}-{name}" / "words" / "tokenizer.json").read_bytes() for name in ("one", "two")]
        assert words[0] == words[1]
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / f"{source}-one" / "words")
        for table in tables[0]:
            for caption in (caption for captions in table["caption"] for caption in captions):
                tokens = tokenizer(caption)["input_ids"]
                assert tokenizer.unk_token_id not in tokens
                assert tokenizer.decode(tokens, skip_special_tokens=True) == caption
        assert tables[0] != tables[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "coco"], "choose one of moving_digits"),
        (["--source", "spoken_words", "--pairs", "0"], "at least 1"),
        (["--source", "easy_vqa"], "has no train.parquet"),
        (["--source", "moving_digits", "--output_dir", "."], "is there already"),
    ],
)
def test_what_cannot_be_made(
    script: Any, sources: dict[str, Path], tmp_path: Path, options: list[str], message: str, capsys: Any
) -> None:
    folder = tmp_path if options[1] == "easy_vqa" else sources["moving_digits"]
    arguments = ["--data_dir", str(folder), *options]
    if "--output_dir" not in options:
        arguments += ["--output_dir", str(tmp_path / "out")]
    assert script.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

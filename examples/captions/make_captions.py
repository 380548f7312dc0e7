"""Make data sets of captions out of real parts: digits that move, pictures of shapes, and pictures with spoken words.

- `moving_digits`: videos of a digit that moves in one direction, "a seven moves up".
- `easy_vqa`: pictures of one shape, "a small red circle at the top left". Shape and colour are what the questions
  about a picture and their answers say; a picture of which they do not say both is left out. Size and place are
  measured.
- `spoken_words`: the picture of one word and the sound of another, "a picture of an animal and a word that begins with
  s": half of a caption is in the picture alone, and half in the sound.

    python examples/captions/make_captions.py --source easy_vqa --data_dir DATA/easy_vqa --output_dir captions

What is written are `train.parquet`, `validation.parquet` and `test.parquet` with the columns of the media and
`caption`, a list: for training one caption, in one of several phrasings, and for the others all of them, with which a
caption is compared; and a tokenizer of their words, in `words`. A split has parts of its own split only, and the same
seed gives the same files.

`--data_dir` has these tables, with the columns `video`, `video_shape`, `digit` and `direction` (0 right, 1 left,
2 down, 3 up); or `image_id`, `question` and `answer`, with the pictures in `images_train.parquet` (of the first two)
and `images_test.parquet`; or `word`, `lesson`, `image` and `audio`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, concatenate_datasets
from transformers import BertTokenizer, HfArgumentParser

SPLITS = ("train", "validation", "test")

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = ("to the right", "to the left", "down", "up")
OF_VIDEOS = ("{a} {digit} moves {direction}", "the digit {digit} goes {direction}", "{digit} is drifting {direction}")

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("red", "blue", "green", "yellow", "gray", "brown", "black", "teal")
OF_PICTURES = ("a {shape} {place}", "there is a {shape} {place}", "{place} you see a {shape}")
IMAGES_OF = {"train": "images_train", "validation": "images_train", "test": "images_test"}
# Of the longer side of a shape, as a share of the picture's: what is smaller is small, what is larger is large.
SMALL, LARGE = 0.3, 0.4
# How far from the edges of a picture the middle begins.
EDGE = 0.4

# What a picture shows, by the lesson of its word: the lessons of which that can be seen.
THINGS = {
    **dict.fromkeys(("animal",), "an animal"),
    **dict.fromkeys(("food", "fruit", "vegetables"), "something to eat"),
    **dict.fromkeys(("clothes",), "something to wear"),
    **dict.fromkeys(("bodyparts",), "a part of the body"),
    **dict.fromkeys(("furniture", "houseware"), "a thing at home"),
    **dict.fromkeys(("tool",), "a tool"),
    **dict.fromkeys(("construction",), "a building"),
    **dict.fromkeys(("nature", "plant"), "a piece of nature"),
    **dict.fromkeys(("job", "people"), "a person"),
    **dict.fromkeys(("sport",), "a sport"),
}
OF_WORDS = (
    "a picture of {thing} and a word that begins with {letter}",
    "{thing} is shown and somebody says a word with {letter} in front",
    "somebody says a word that begins with {letter} and the picture shows {thing}",
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass
class MakingArguments:
    """The options of the data to make."""

    source: str = field(metadata={"help": "What captions are about: moving_digits, easy_vqa or spoken_words."})
    data_dir: str = field(metadata={"help": "Folder of its tables."})
    output_dir: str = field(metadata={"help": "A new folder."})
    pairs: int = field(default=6, metadata={"help": "Of spoken_words: how many sounds go with each picture."})
    seed: int = field(default=0, metadata={"help": "Of everything."})

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"--source {self.source!r} is unknown: choose one of {', '.join(SOURCES)}.")
        if self.pairs < 1:
            raise ValueError(f"--pairs must be at least 1, got {self.pairs}.")
        pictures = dict.fromkeys(IMAGES_OF.values()) if self.source == "easy_vqa" else ()
        missing = [name for name in (*SPLITS, *pictures) if not self.table(name).is_file()]
        if missing:
            raise ValueError(f"--data_dir {self.data_dir!r} has no {missing[0]}.parquet.")
        if Path(self.output_dir).exists():
            raise ValueError(f"--output_dir {self.output_dir!r} is there already.")

    def table(self, name: str) -> Path:
        return Path(self.data_dir, f"{name}.parquet")


# --- Captions: a data set of media, and of each row every phrasing of what it shows ----------------------------------

Captioned = tuple[Dataset, list[list[str]]]


def of_videos(arguments: MakingArguments, split: str, rng: np.random.Generator) -> Captioned:
    """Videos of a digit that moves."""
    rows = read(arguments, split)
    facts = [
        {"a": "an" if DIGITS[digit] == "eight" else "a", "digit": DIGITS[digit], "direction": DIRECTIONS[direction]}
        for digit, direction in zip(rows["digit"], rows["direction"], strict=True)
    ]
    return rows.select_columns(["video", "video_shape"]), phrased(OF_VIDEOS, facts)


def of_pictures(arguments: MakingArguments, split: str, rng: np.random.Generator) -> Captioned:
    """Pictures of one shape."""
    questions, images = read(arguments, split), read(arguments, IMAGES_OF[split])
    asked: dict[int, list[tuple[str, str]]] = {}
    for number, *pair in zip(questions["image_id"], questions["question"], questions["answer"], strict=True):
        asked.setdefault(number, []).append((pair[0], pair[1]))
    facts, rows = [], []
    for row, number in enumerate(images["image_id"]):
        shape, color = read_answers(asked.get(number, ()))
        if shape is not None and color is not None:
            rows.append(row)
            facts.append((shape, color))
    chosen = images.select(rows)
    said = []
    for (shape, color), image in zip(facts, chosen.cast_column("image", Image())["image"], strict=True):
        size, place = measure(np.asarray(image.convert("RGB"), dtype=np.int64))
        said.append({"shape": " ".join(filter(None, (size, color, shape))), "place": place})
    return chosen.select_columns(["image"]), phrased(OF_PICTURES, said)


def read_answers(asked: Iterable[tuple[str, str]]) -> tuple[str | None, str | None]:
    """The shape and the colour of a picture, of questions about it and their answers; None for what stays open."""
    open_ones = {"shape": set(SHAPES), "color": set(COLORS)}
    for question, answer in asked:
        words = question.rstrip("?").split()
        is_denied = (answer == "no") != ("not" in words or "no" in words)
        for word in (*words, answer):
            kind = "shape" if word in SHAPES else "color" if word in COLORS else None
            if kind is None:
                continue
            if answer in ("yes", "no") and is_denied:
                open_ones[kind] -= {word}
            else:
                open_ones[kind] &= {word}
    shape, color = (next(iter(kind)) if len(kind) == 1 else None for kind in open_ones.values())
    return shape, color


def measure(pixels: np.ndarray) -> tuple[str, str]:
    """The size, "" if it is neither small nor large, and the place of what differs from the corner of a picture.

    Args:
        pixels: `(height, width, 3)`.
    """
    rows, columns = np.nonzero(np.abs(pixels - _background(pixels)).sum(-1) > 30)
    spans = [
        (ends.min() / side, (ends.max() + 1) / side) for ends, side in zip((rows, columns), pixels.shape, strict=False)
    ]
    longest = max(end - start for start, end in spans)
    size = "small" if longest < SMALL else "large" if longest > LARGE else ""
    down, right = ((start + end) / 2 for start, end in spans)
    vertical = "top" if down < EDGE else "bottom" if down > 1 - EDGE else ""
    horizontal = "left" if right < EDGE else "right" if right > 1 - EDGE else ""
    if not vertical:
        return size, f"on the {horizontal}" if horizontal else "in the middle"
    return size, " ".join(filter(None, ("at the", vertical, horizontal)))


def _background(pixels: np.ndarray) -> np.ndarray:
    """The colour that most of the four corners have: a shape may lie in one of them."""
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    colors, counts = np.unique(corners, axis=0, return_counts=True)
    return colors[counts.argmax()]


def of_words(arguments: MakingArguments, split: str, rng: np.random.Generator) -> Captioned:
    """Pairs of a picture and the sound of another word."""
    words = read(arguments, split)
    seen = [row for row, lesson in enumerate(words["lesson"]) if lesson in THINGS]
    pairs = []
    for row in seen:
        others = np.delete(np.arange(len(words)), row)
        pairs += [(row, int(other)) for other in rng.choice(others, min(arguments.pairs, len(others)), replace=False)]
    pictures = words.select([row for row, _ in pairs])
    sounds = words.select([row for _, row in pairs])
    facts = [
        {"thing": THINGS[lesson], "letter": word[0]}
        for lesson, word in zip(pictures["lesson"], sounds["word"], strict=True)
    ]
    media = concatenate_datasets([pictures.select_columns(["image"]), sounds.select_columns(["audio"])], axis=1)
    return media, phrased(OF_WORDS, facts)


def read(arguments: MakingArguments, name: str) -> Dataset:
    return Dataset.from_parquet(str(arguments.table(name)))


def phrased(phrases: Sequence[str], facts: Iterable[dict[str, str]]) -> list[list[str]]:
    """All phrasings of every sample."""
    return [[phrase.format(**of_one) for phrase in phrases] for of_one in facts]


SOURCES: dict[str, Callable[[MakingArguments, str, np.random.Generator], Captioned]] = {
    "moving_digits": of_videos,
    "easy_vqa": of_pictures,
    "spoken_words": of_words,
}


# --- Files -----------------------------------------------------------------------------------------------------------


def make(arguments: MakingArguments) -> None:
    output = Path(arguments.output_dir)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    words: set[str] = set()
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([arguments.seed, number])
        media, captions = SOURCES[arguments.source](arguments, split, rng)
        words |= {word for phrasings in captions for caption in phrasings for word in re.findall(r"\w+", caption)}
        if split == "train":
            captions = [[str(rng.choice(phrasings))] for phrasings in captions]
        media.add_column("caption", captions).to_parquet(str(partial / f"{split}.parquet"))
        print(f"{split}: {len(captions)} rows, such as {captions[0][0]!r}", flush=True)
    vocabulary = [*SPECIAL, *sorted(words)]
    BertTokenizer(vocab={word: place for place, word in enumerate(vocabulary)}).save_pretrained(partial / "words")
    os.replace(partial, output)


def main(arguments: list[str] | None = None) -> int:
    kinds: Any = (MakingArguments,)
    try:
        (making,) = HfArgumentParser(kinds, description=__doc__).parse_args_into_dataclasses(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    make(making)
    return 0


if __name__ == "__main__":
    sys.exit(main())

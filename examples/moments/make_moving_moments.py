"""Make a data set of moments in videos out of real parts: digits that move, and sentences about them.

A video is a strip of clips of two seconds, each a digit that moves in one direction, in stretches of the same digit
and direction. A query names one digit and one direction ("a seven goes up"); its moments are the stretches that show
it. In every video there are also stretches with the same digit in another direction and with another digit in the same
one: neither half of a query is enough, nor is the video without the query. Three made-up people find the middle of a
stretch better than its ends.

    python examples/moments/make_moving_moments.py --data_dir DATA/moving_digits --dino DINOV2 --text MINILM \\
        --output_dir moving_moments

Files are those of QVHighlights: `train.jsonl`, `validation.jsonl`, `test.jsonl`, features of videos in `dino/VID.npz`
and `motion/VID.npz`, those of queries in `text/qidQID.npz`. The same seed gives the same files. A video has clips of
its own split only. `--data_dir` has `train.parquet` and so on, with columns `video` (bytes of uint8 frames),
`video_shape` and `label` (4 · digit + direction).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, HfArgumentParser, set_seed

SPLITS = ("train", "validation", "test")
CLIP_SECONDS = 2
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = ("right", "left", "down", "up")
PHRASES = (
    "the digit {digit} moves {direction}",
    "a {digit} goes {direction}",
    "{digit} is drifting {direction}",
    "when does a {digit} slide {direction}?",
    "show me the {digit} that travels {direction}",
    "somebody pushes the {digit} {direction}",
)
# Clips of a stretch, at least and at most: short, middle and long moments as QVHighlights has them; and how often.
STRETCHES = ((2, 5), (6, 12), (16, 20))
HOW_OFTEN = (0.5, 0.4, 0.1)
# Clips of a video.
SHORTEST, LONGEST = 30, 75


@dataclass
class MakingArguments:
    """The options of the data to make."""

    data_dir: str = field(metadata={"help": "Folder of the clips: train.parquet, validation.parquet, test.parquet."})
    dino: str = field(metadata={"help": "An encoder of images, for what a clip shows: a Hub id or a folder."})
    text: str = field(metadata={"help": "An encoder of sentences, for the words of a query."})
    output_dir: str = field(metadata={"help": "A new folder."})
    videos: list[int] = field(
        default_factory=lambda: [600, 100, 150], metadata={"help": "How many videos of each split."}
    )
    queries: int = field(default=2, metadata={"help": "How many queries about one video."})
    motion_epochs: int = field(default=15, metadata={"help": "Epochs of the small encoder of motion."})
    seed: int = field(default=0, metadata={"help": "Of everything."})

    def __post_init__(self) -> None:
        if len(self.videos) != len(SPLITS) or min(self.videos) < 1:
            raise ValueError(f"--videos takes a number for each of {', '.join(SPLITS)}, got {self.videos}.")
        if self.queries < 1:
            raise ValueError(f"--queries must be at least 1, got {self.queries}.")
        missing = [name for name in SPLITS if not Path(self.data_dir, f"{name}.parquet").is_file()]
        if missing:
            raise ValueError(f"--data_dir {self.data_dir!r} has no {missing[0]}.parquet.")
        if Path(self.output_dir).exists():
            raise ValueError(f"--output_dir {self.output_dir!r} is there already.")


# --- The clips -------------------------------------------------------------------------------------------------------


def load_clips(folder: str, split: str) -> tuple[Tensor, np.ndarray]:
    """`(n, frames, height, width)` from 0 to 1, and their labels."""
    rows = load_dataset("parquet", data_files={split: str(Path(folder, f"{split}.parquet"))}, split=split)
    shape = rows[0]["video_shape"]
    frames = [np.frombuffer(row["video"], np.uint8).reshape(row["video_shape"]) for row in rows]
    clips = torch.from_numpy(np.stack(frames)).float().div(255).view(len(rows), *shape[:3])
    return clips, np.asarray(rows["label"])


class MotionEncoder(nn.Module):
    """A small network that sees a digit and where it goes."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv3d(before, after, 3, padding=1), nn.BatchNorm3d(after), nn.ReLU(), nn.MaxPool3d(2)]
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(64, len(DIGITS) * len(DIRECTIONS))

    def features(self, clips: Tensor) -> Tensor:
        """`(n, 64)` of `(n, frames, height, width)`."""
        return self.body(interpolate(clips, scale_factor=0.5, mode="bilinear").unsqueeze(1)).mean((2, 3, 4))

    def forward(self, clips: Tensor) -> Tensor:
        return self.classifier(self.features(clips))


def train_motion(clips: Tensor, labels: np.ndarray, epochs: int, seed: int) -> MotionEncoder:
    """The small encoder, trained to name digit and direction of single clips."""
    set_seed(seed)
    model, targets = MotionEncoder(), torch.from_numpy(labels)
    steps = epochs * -(-len(clips) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(clips)).split(32):
            loss = nn.functional.cross_entropy(model(clips[rows]), targets[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def motion_features(model: MotionEncoder, clips: Tensor) -> np.ndarray:
    return torch.cat([model.features(part) for part in clips.split(64)]).numpy()


@torch.no_grad()
def picture_features(name: str, clips: Tensor) -> np.ndarray:
    """The class token of the middle frame of every clip, `(n, size)`."""
    model, processor = (
        AutoModel.from_pretrained(name, dtype=torch.float32).eval(),
        AutoImageProcessor.from_pretrained(name),
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
    found = []
    for part in clips[:, clips.shape[1] // 2].split(64):
        pixels = interpolate(part.unsqueeze(1).expand(-1, 3, -1, -1), size=(112, 112), mode="bicubic")
        found.append(model(pixel_values=(pixels - mean) / std).last_hidden_state[:, 0])
    return torch.cat(found).numpy()


# --- The videos ------------------------------------------------------------------------------------------------------


def make_video(rng: np.random.Generator, count: int) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Stretches `(start, end, label)` in clips, which fill a video, and the labels that a query may be about."""
    length = int(rng.integers(SHORTEST, LONGEST + 1))
    target = int(rng.integers(len(DIGITS) * len(DIRECTIONS)))
    asked = [target]
    while len(asked) < count:  # of the same digit or the same direction, so that both halves of a query are needed
        digit, direction = divmod(target, len(DIRECTIONS))
        if rng.random() < 0.5:
            direction = int(rng.integers(len(DIRECTIONS)))
        else:
            digit = int(rng.integers(len(DIGITS)))
        label = digit * len(DIRECTIONS) + direction
        if label not in asked:
            asked.append(label)
    wanted = list(asked)
    for label in asked:
        digit, direction = divmod(label, len(DIRECTIONS))
        wanted.append(digit * len(DIRECTIONS) + (direction + int(rng.integers(1, 4))) % len(DIRECTIONS))
        wanted.append((digit + int(rng.integers(1, 10))) % len(DIGITS) * len(DIRECTIONS) + direction)
        if rng.random() < 0.35:
            wanted.append(label)
    rng.shuffle(wanted)
    stretches: list[tuple[int, int, int]] = []
    start, before = 0, -1
    while start < length:
        others = [place for place, label in enumerate(wanted) if label != before]
        label = int(wanted.pop(others[-1]) if others else rng.integers(len(DIGITS) * len(DIRECTIONS)))
        if label == before or (not others and label in asked):
            continue
        low, high = STRETCHES[int(rng.choice(len(STRETCHES), p=HOW_OFTEN))]
        # What is wanted must fit in, and a stretch or two between equal ones.
        room = length - start - 2 * len(wanted) - 4
        end = start + max(2, min(int(rng.integers(low, high + 1)), room))
        stretches.append((start, min(end, length), label))
        start, before = end, label
    present = [label for _, _, label in stretches]
    return stretches, [label for label in asked if label in present]


def scores_of(rng: np.random.Generator, stretch: tuple[int, int, int]) -> list[list[int]]:
    """The scores, from 1 to 4, that three people give every clip of a stretch."""
    start, end, _ = stretch
    middle, half = (start + end - 1) / 2, max((end - start) / 2, 1)
    liked = [4 - round(2 * abs(clip - middle) / half) for clip in range(start, end)]
    return [[int(min(4, max(1, score - rng.integers(0, 2)))) for _ in range(3)] for score in liked]


def annotate(
    rng: np.random.Generator, vid: str, stretches: list[tuple[int, int, int]], label: int, qid: int
) -> dict[str, Any]:
    digit, direction = divmod(label, len(DIRECTIONS))
    shown = [stretch for stretch in stretches if stretch[2] == label]
    phrase = PHRASES[int(rng.integers(len(PHRASES)))]
    return {
        "qid": qid,
        "query": phrase.format(digit=DIGITS[digit], direction=DIRECTIONS[direction]),
        "vid": vid,
        "duration": stretches[-1][1] * CLIP_SECONDS,
        "relevant_windows": [[start * CLIP_SECONDS, end * CLIP_SECONDS] for start, end, _ in shown],
        "relevant_clip_ids": [clip for start, end, _ in shown for clip in range(start, end)],
        "saliency_scores": [scores for stretch in shown for scores in scores_of(rng, stretch)],
    }


def write_split(
    folder: Path,
    split: str,
    rng: np.random.Generator,
    arguments: MakingArguments,
    labels: np.ndarray,
    features: dict[str, np.ndarray],
    first_query: int,
) -> list[dict[str, Any]]:
    """The videos of a split and its annotations, which are returned."""
    rows = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    lines: list[dict[str, Any]] = []
    for number in range(arguments.videos[SPLITS.index(split)]):
        vid = f"{split}_{number:04d}"
        stretches, asked = make_video(rng, arguments.queries)
        clips = np.concatenate([rng.choice(rows[label], end - start) for start, end, label in stretches])
        for name, vectors in features.items():
            np.savez(folder / name / f"{vid}.npz", features=vectors[clips].astype(np.float16))
        lines += [annotate(rng, vid, stretches, label, first_query + len(lines) + i) for i, label in enumerate(asked)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return lines


@torch.no_grad()
def write_queries(folder: Path, lines: list[dict[str, Any]], name: str) -> None:
    """The words of every query as vectors."""
    tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name).eval()
    states: dict[str, np.ndarray] = {}
    for line in lines:
        if line["query"] not in states:
            inputs = tokenizer(line["query"], return_tensors="pt")
            states[line["query"]] = model(**inputs).last_hidden_state[0].numpy().astype(np.float16)
        np.savez(folder / "text" / f"qid{line['qid']}.npz", last_hidden_state=states[line["query"]])


def make(arguments: MakingArguments) -> None:
    output = Path(arguments.output_dir)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("dino", "motion", "text"):
        (partial / name).mkdir(parents=True)
    loaded = {split: load_clips(arguments.data_dir, split) for split in SPLITS}
    motion = train_motion(*loaded["train"], arguments.motion_epochs, arguments.seed)
    lines: list[dict[str, Any]] = []
    for number, (split, (clips, labels)) in enumerate(loaded.items()):
        of_motion = motion_features(motion, clips)
        with torch.no_grad():
            right = (motion.classifier(torch.from_numpy(of_motion)).argmax(-1).numpy() == labels).mean()
        print(f"{split}: {len(clips)} clips, of which the encoder of motion names {100 * right:.1f} %", flush=True)
        features = {"dino": picture_features(arguments.dino, clips), "motion": of_motion}
        rng = np.random.default_rng([arguments.seed, number])
        lines += write_split(partial, split, rng, arguments, labels, features, len(lines))
    write_queries(partial, lines, arguments.text)
    os.replace(partial, output)
    print(f"{len(lines)} queries in {output}.")


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

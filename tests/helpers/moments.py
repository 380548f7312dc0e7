"""A tiny set of moments in the files of QVHighlights: what a query says is a direction that clips have or do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"clip": 6, "slow": 4, "sound": 3, "text": 6}
CLIP_SECONDS = 2
# A model that takes a second to train.
FUSION = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
TINY: dict[str, Any] = {
    "fusion_config": json.dumps(FUSION),
    "moments_config": '{"num_queries": 3, "dec_layers": 1}',
    "query_features": "text",
    "per_device_eval_batch_size": 4,
}


def make_lines(videos: int, first: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Two queries to a video, whose moments are its first and its second half."""
    draw = np.random.default_rng([seed, first])
    lines = []
    for number in range(first, first + videos):
        clips = int(draw.integers(6, 11))
        middle = clips // 2
        for half, (start, end) in enumerate(((0, middle), (middle, clips))):
            lines.append(
                {
                    "qid": 2 * number + half,
                    "query": ("a cat sat", "on the mat")[half],
                    "vid": f"v{number}",
                    "duration": CLIP_SECONDS * clips,
                    "relevant_windows": [[CLIP_SECONDS * start, CLIP_SECONDS * end]],
                    "relevant_clip_ids": list(range(start, end)),
                    "saliency_scores": [[4, 3, 2]] * (end - start),
                }
            )
    return lines


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_features(folder: Path, lines: list[dict[str, Any]], seed: int = 0) -> None:
    """Vectors of two streams of clips, of sound and of words; every third video has no sound."""
    draw = np.random.default_rng(seed)
    for name in SIZES:
        (folder / name).mkdir(exist_ok=True)
    sides = np.eye(2, SIZES["clip"])
    for line in lines:
        clips = line["duration"] // CLIP_SECONDS
        halves = (np.arange(clips) >= clips // 2).astype(int)
        vectors = sides[halves] + 0.1 * draw.normal(size=(clips, SIZES["clip"]))
        np.savez(folder / "clip" / f"{line['vid']}.npz", features=vectors.astype(np.float16))
        np.save(folder / "slow" / f"{line['vid']}.npy", draw.normal(size=(clips, SIZES["slow"])))
        if int(line["vid"][1:]) % 3:
            np.savez(folder / "sound" / f"{line['vid']}.npz", features=draw.normal(size=(clips, SIZES["sound"])))
        words = sides[[line["qid"] % 2] * 3] + 0.1 * draw.normal(size=(3, SIZES["text"]))
        np.savez(folder / "text" / f"qid{line['qid']}.npz", last_hidden_state=words[: 2 + line["qid"] % 2])


def write_moments(folder: Path, train: int = 12, others: int = 4) -> Path:
    """A folder with train.jsonl, validation.jsonl, test.jsonl, and vectors in `clip`, `slow`, `sound` and `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for split, count in (("train", train), ("validation", others), ("test", others)):
        lines = make_lines(count, first)
        write_lines(folder / f"{split}.jsonl", lines)
        write_features(folder, lines, first)
        first += count
    return folder

"""`run_moment_retrieval.py` on strips of moving digits, and what is found there without a model of moments.

    chance       windows as long as those of the training data, anywhere
    query_free   the windows that fit most of the training data, as fractions of a video, whatever the query says
    similarity   the cosine of what a clip shows and what the words say, which have vectors of one size, but of two
                 encoders that never saw each other; windows are where it is above a threshold
    linear       the same after a linear map from clips to words, fitted by ridge regression to the training windows

The set is made by `examples/moments/make_moving_moments.py`, once, into `--moments_dir`; all other options are those
of `run_moment_retrieval.py`:

    python moments.py --clips_dir DATA/moving_digits --dino DATA/models/dinov2-small --text MINILM \\
        --moments_dir moments --video_features dino motion --query_features text --do_train --do_eval --output_dir out
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import HfArgumentParser

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(1, str(Path(__file__).resolve().parents[2] / "moments"))
import make_moving_moments
import run_moment_retrieval

from hf_lam.modeling.fusion_moments_hf_lam import Moment, Retrieved
from hf_lam.training.arguments import RunArguments
from hf_lam.training.data import limited
from hf_lam.training.moment_data import WORDS, MomentArguments, MomentVectors, load_moments
from hf_lam.training.moment_files import MomentAnnotation
from hf_lam.training.moment_goal import Moments
from hf_lam.training.moment_metrics import count_clips
from hf_lam.training.parsing import parse_arguments
from hf_lam.training.recorded_runs import write_once
from hf_lam.training.sources import SOURCE

# What finds the moments of a query.
Finder = Callable[[MomentAnnotation], Retrieved]
# How many windows are given for each query.
MOST = 10


@dataclass
class SetArguments:
    """The data, and what finds moments in place of a model. All other options are those of the script."""

    clips_dir: str = field(metadata={"help": "Folder of the clips, moving_digits."})
    dino: str = field(metadata={"help": "An encoder of images."})
    text: str = field(metadata={"help": "An encoder of sentences."})
    moments_dir: str = field(metadata={"help": "Where the set is, or is made."})
    baseline: str | None = field(default=None, metadata={"help": "chance, query_free, similarity or linear."})

    def __post_init__(self) -> None:
        if self.baseline is not None and self.baseline not in FINDERS:
            raise ValueError(f"--baseline {self.baseline!r} is unknown: choose one of {', '.join(FINDERS)}.")


# --- without a model -------------------------------------------------------------------------------------------------


def by_chance(train: Sequence[MomentAnnotation], vectors: MomentVectors, seed: int) -> Finder:
    lengths = np.array([end - start for annotation in train for start, end in annotation.windows or ()])
    draw = np.random.default_rng(seed)

    def find(annotation: MomentAnnotation) -> Retrieved:
        chosen = np.minimum(draw.choice(lengths, MOST), annotation.duration)
        starts = draw.uniform(0, annotation.duration - chosen)
        scores = np.sort(draw.random(MOST))[::-1]
        windows = zip(starts, starts + chosen, scores, strict=True)
        moments = [Moment(float(start), float(end), float(score)) for start, end, score in windows]
        clips = count_clips(annotation.duration, vectors.clip_length)
        return Retrieved(moments, torch.from_numpy(draw.random(clips)))

    return find


def without_query(train: Sequence[MomentAnnotation], vectors: MomentVectors, seed: int) -> Finder:
    edges = np.linspace(0, 1, 41)
    grid = np.array([(start, end) for start in edges for end in edges if end > start])
    fits = np.stack([overlaps(grid, np.asarray(x.windows) / x.duration).max(1) >= 0.5 for x in train], axis=1)
    chosen: list[int] = []
    left = np.ones(len(train), dtype=bool)
    while len(chosen) < MOST:  # each the one that fits most of the queries that none before it fits
        chosen.append(int((fits & left).sum(1).argmax()))
        left &= ~fits[chosen[-1]]

    def find(annotation: MomentAnnotation) -> Retrieved:
        windows = grid[chosen] * annotation.duration
        moments = [Moment(float(start), float(end), 1 / (place + 1)) for place, (start, end) in enumerate(windows)]
        clips = count_clips(annotation.duration, vectors.clip_length)
        places = (torch.arange(clips) + 0.5) / clips
        within = (torch.from_numpy(grid[chosen])[:, :1] <= places) & (places < torch.from_numpy(grid[chosen])[:, 1:])
        return Retrieved(moments, within.double().mean(0))

    return find


def by_similarity(train: Sequence[MomentAnnotation], vectors: MomentVectors, seed: int) -> Finder:
    def similarity(annotation: MomentAnnotation) -> np.ndarray:
        clips, words = pair_of(annotation, vectors)
        return cosine(clips[:, : len(words)], words)  # the pictures come first

    return find_runs(similarity, train, vectors)


def by_linear_map(train: Sequence[MomentAnnotation], vectors: MomentVectors, seed: int) -> Finder:
    inputs, targets = [], []
    for annotation in train:
        clips, words = pair_of(annotation, vectors)
        relevant = relevant_clips(annotation, vectors)
        inputs.append(clips[relevant])
        targets.append(np.repeat(words[None], len(relevant), axis=0))
    known, wanted = np.concatenate(inputs), np.concatenate(targets)
    center, mean = known.mean(0), wanted.mean(0)
    known = known - center
    matrix = np.linalg.solve(known.T @ known + 1e-3 * len(known) * np.eye(known.shape[1]), known.T @ (wanted - mean))

    def similarity(annotation: MomentAnnotation) -> np.ndarray:
        clips, words = pair_of(annotation, vectors)
        return cosine((clips - center) @ matrix, words - mean)

    return find_runs(similarity, train, vectors)


def cosine(clips: np.ndarray, words: np.ndarray) -> np.ndarray:
    return clips @ words / (np.linalg.norm(clips, axis=1) * np.linalg.norm(words) + 1e-9)


def find_runs(
    similarity: Callable[[MomentAnnotation], np.ndarray], train: Sequence[MomentAnnotation], vectors: MomentVectors
) -> Finder:
    """Windows are clips in a row whose similarity is above the threshold that fits the training windows best."""
    of_train = [(x, similarity(x)) for x in train[:500]]
    every = np.concatenate([scores for _, scores in of_train])

    def hits(threshold: float) -> int:
        found = [(runs_above(scores, threshold, vectors.clip_length)[:1], x.windows) for x, scores in of_train]
        return sum(bool(first) and overlaps(np.array([first[0][:2]]), true).max() >= 0.5 for first, true in found)

    best = max(np.quantile(every, np.linspace(0.02, 0.98, 33)), key=hits)

    def find(annotation: MomentAnnotation) -> Retrieved:
        scores = similarity(annotation)
        return Retrieved(runs_above(scores, best, vectors.clip_length)[:MOST], torch.from_numpy(scores))

    return find


def runs_above(scores: np.ndarray, threshold: float, clip_length: float) -> list[Moment]:
    """The runs of clips above a threshold, those with most above it first."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], scores > threshold, [False]]).astype(int)))
    found = [
        Moment(float(start * clip_length), float(end * clip_length), float((scores[start:end] - threshold).sum()))
        for start, end in edges.reshape(-1, 2)
    ]
    return sorted(found, key=lambda moment: -moment.score)


def pair_of(annotation: MomentAnnotation, vectors: MomentVectors) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of the clips, `(clips, size)`, and the mean of those of the words."""
    found = vectors.of(annotation)
    clips = np.concatenate([found[name] for name in vectors.streams], axis=1)
    clips = clips[:, :-2] if vectors.has_endpoints else clips
    return clips.astype(np.float64), found[WORDS].mean(0).astype(np.float64)


def relevant_clips(annotation: MomentAnnotation, vectors: MomentVectors) -> list[int]:
    return [
        clip
        for start, end in annotation.windows or ()
        for clip in range(round(start / vectors.clip_length), round(end / vectors.clip_length))
    ]


def overlaps(windows: np.ndarray, true: Any) -> np.ndarray:
    """Intersection over union, `(windows, true windows)`."""
    true = np.asarray(true)
    shared = np.minimum(windows[:, None, 1], true[:, 1]) - np.maximum(windows[:, None, 0], true[:, 0])
    lengths = (windows[:, None, 1] - windows[:, None, 0]) + (true[:, 1] - true[:, 0])
    shared = np.clip(shared, 0, None)
    return shared / (lengths - shared)


FINDERS: dict[str, Callable[[Sequence[MomentAnnotation], MomentVectors, int], Finder]] = {
    "chance": by_chance,
    "query_free": without_query,
    "similarity": by_similarity,
    "linear": by_linear_map,
}


def run_baseline(name: str, arguments: list[str]) -> dict[str, float]:
    """Find moments without a model, and write what a run of the script would write of its metrics."""
    model, data, training = parse_arguments(
        run_moment_retrieval.MomentModelArguments, MomentArguments, str(__doc__), arguments, RunArguments
    )
    loaded = load_moments(data, model, training)
    goal = loaded.goal
    assert isinstance(goal, Moments)
    folder = Path(str(training.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    if training.check_only:
        (folder / "check.json").write_text(json.dumps({"metrics": [*goal.metrics]}))
        return {}
    vectors = MomentVectors(data, None, goal.clip_length, data.max_clips, data.max_words)
    chosen = {
        split: [goal.annotations[row] for row in dataset[SOURCE]]
        for split, dataset in limited(loaded.splits, data, training.seed).items()
    }
    find = FINDERS[name](chosen["train"], vectors, training.seed)
    results: dict[str, float] = {}
    for split, prefix in (("validation", "eval"), ("test", "predict")):
        if split in chosen:
            metrics = goal.compare(chosen[split], [find(annotation) for annotation in chosen[split]])
            results |= {f"{prefix}_{key}": value for key, value in metrics.items()}
    (folder / "all_results.json").write_text(json.dumps(results, indent=4))
    return results


# --- a run -----------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> dict[str, float]:
    kinds: Any = (SetArguments,)
    parser = HfArgumentParser(kinds, description=__doc__, allow_abbrev=False)
    parsed: Any = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    wanted, further = parsed

    def make(folder: Path) -> None:
        making = {"data_dir": wanted.clips_dir, "dino": wanted.dino, "text": wanted.text, "output_dir": str(folder)}
        make_moving_moments.make(make_moving_moments.MakingArguments(**making))

    Path(wanted.moments_dir).parent.mkdir(parents=True, exist_ok=True)
    write_once(Path(wanted.moments_dir), make)
    further = ["--data_dir", wanted.moments_dir, *further]
    return run_moment_retrieval.main(further) if wanted.baseline is None else run_baseline(wanted.baseline, further)


if __name__ == "__main__":
    main()

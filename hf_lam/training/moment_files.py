"""Files of moment retrieval: annotations, folders of features, and predictions, as QVHighlights lays them out.

A line of annotations is `{"qid": 8737, "query": "A family plays basketball.", "vid": "bP5K_660.0_810.0", "duration":
126, "relevant_windows": [[0, 16]], "relevant_clip_ids": [0, 1, …], "saliency_scores": [[4, 1, 1], …]}`. A query whose
answer is not known has only the first four. Features of a video are `VID.npz` or `VID.npy` in one folder or several,
one vector for each clip; of a query likewise `qidQID.npz`, one for each word.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..modeling.moment_options_hf_lam import MomentOptions
from ..modeling.saving_hf_lam import staging
from .moment_metrics import clip_scores, count_clips

# What a line has, by the names of QVHighlights.
KEYS = ("qid", "query", "vid", "duration", "relevant_windows", "relevant_clip_ids", "saliency_scores")
_NEEDED = ("qid", "query", "vid", "duration")
# Array of an archive that is taken, by these names or as the only one.
_ARRAYS = ("features", "last_hidden_state")
# By how many clips features and duration may differ: encoders round the last one up or down.
_ROUNDING = 1


@dataclass(frozen=True)
class MomentAnnotation:
    """A query about one video.

    qid: number of the query.
    vid: name of the video.
    query: text of the query.
    duration: duration of the video in seconds.
    windows: `(start, end)` in seconds, those it speaks of; None if they are not known.
    relevant: the clips it speaks of, counted from 0; None if nobody scored them.
    scores: scores of each relevant clip by each person, `(relevant, people)`.
    place: the file and the line, for messages.
    """

    qid: int | str
    vid: str
    query: str
    duration: float
    windows: tuple[tuple[float, float], ...] | None
    relevant: tuple[int, ...] | None
    scores: np.ndarray | None
    place: str


def read_annotations(
    path: str | os.PathLike[str],
    *,
    names: Mapping[str, str] | None = None,
    clip_length: float = MomentOptions.clip_length,
    is_labelled: bool = True,
) -> list[MomentAnnotation]:
    """Read the queries of a jsonl or parquet file.

    Args:
        path: path of the file.
        names: names in this file for keys of QVHighlights, such as `{"saliency_scores": "label"}` for TVSum. Scores
            without `relevant_clip_ids` are of all clips, one more or less as with features.
        clip_length: length of a clip in seconds.
        is_labelled: whether every query must have its windows, or scores.

    Raises:
        ValueError: naming the file, the line and the key: for a key that is missing, a window that is not in its
            video, scores that are not of its clips, or of other people than before, a query that stands twice, and
            the like.
    """
    path = Path(path)
    called = {key: key for key in KEYS} | dict(names or {})
    unknown = sorted(set(called) - set(KEYS))
    if unknown:
        raise ValueError(f"names: there is no key {', '.join(unknown)}, only {', '.join(KEYS)}.")
    found: list[MomentAnnotation] = []
    seen: dict[Any, str] = {}
    people: tuple[int, str] | None = None
    for place, line in _lines(path):
        values = {key: line.get(name) for key, name in called.items()}
        try:
            annotation = _read(values, place, clip_length, is_labelled)
        except _WrongKeyError as error:
            raise ValueError(f"{place}, {called[error.key]}: {error}.") from error
        if annotation.qid in seen:
            raise ValueError(f"{place}, {called['qid']}: {annotation.qid!r} stands in {seen[annotation.qid]} already.")
        seen[annotation.qid] = place
        if annotation.scores is not None:
            count = annotation.scores.shape[1]
            people = people or (count, place)
            if count != people[0]:
                raise ValueError(
                    f"{place}, {called['saliency_scores']}: a clip has the scores of {count} people, and in "
                    f"{people[1]} of {people[0]}."
                )
        found.append(annotation)
    if not found:
        raise ValueError(f"{str(path)!r} has no queries.")
    return found


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}.")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for row, line in enumerate(pyarrow.parquet.read_table(path).to_pylist()):
            yield f"{str(path)!r}, row {row}", line
        return
    if path.suffix not in (".jsonl", ".json"):
        raise ValueError(f"{str(path)!r} must be a .jsonl or .parquet file.")
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            if not content.strip():
                continue
            place = f"{str(path)!r}, line {number}"
            try:
                text = content.decode()
                line = json.loads(text)
            except ValueError as error:  # bytes that are no UTF-8, too
                raise ValueError(f"{place}: it is no JSON: {error}.") from error
            if not isinstance(line, Mapping):
                raise ValueError(f"{place}: it must be an object with {', '.join(_NEEDED)}, got {text.strip()[:50]}.")
            yield place, line


class _WrongKeyError(Exception):
    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def _read(values: Mapping[str, Any], place: str, clip_length: float, is_labelled: bool) -> MomentAnnotation:
    for key in _NEEDED:
        if values[key] is None:
            raise _WrongKeyError(key, "it is missing")
    qid, vid, query = values["qid"], values["vid"], values["query"]
    if isinstance(qid, bool) or not isinstance(qid, (int, str)):
        raise _WrongKeyError("qid", f"it must be a number or a text, got {qid!r}")
    if not isinstance(vid, str) or not vid or os.path.basename(vid) != vid:
        raise _WrongKeyError("vid", f"it must be the name of a video, without a folder, got {vid!r}")
    if not isinstance(query, str) or not query.strip():
        raise _WrongKeyError("query", f"it must be a text, got {query!r}")
    duration = values["duration"]
    if not _is_number(duration) or duration < clip_length:
        raise _WrongKeyError("duration", f"it must be seconds, of at least one clip ({clip_length}), got {duration!r}")
    windows = None if values["relevant_windows"] is None else _windows(values["relevant_windows"], duration)
    relevant, scores = _scores(values, duration, clip_length)
    if is_labelled and windows is None and scores is None:
        raise _WrongKeyError("relevant_windows", "it is missing, and there are no saliency_scores either")
    return MomentAnnotation(qid, vid, query, float(duration), windows, relevant, scores, place)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _windows(given: Any, duration: float) -> tuple[tuple[float, float], ...]:
    key = "relevant_windows"
    if not isinstance(given, (list, tuple)) or not given:
        raise _WrongKeyError(key, f"it must be a list of [start, end], got {given!r}")
    for window in given:
        if not isinstance(window, (list, tuple)) or len(window) != 2 or not all(map(_is_number, window)):
            raise _WrongKeyError(key, f"a window must be [start, end] in seconds, got {window!r}")
        start, end = window
        if not 0 <= start < end:
            raise _WrongKeyError(key, f"the window {window!r} must start at 0 or later, and end after it starts")
        if end > duration:
            raise _WrongKeyError(key, f"the window {window!r} ends after the video, which has {duration} s")
    return tuple((float(start), float(end)) for start, end in given)


def _scores(
    values: Mapping[str, Any], duration: float, clip_length: float
) -> tuple[tuple[int, ...] | None, np.ndarray | None]:
    given, ids = values["saliency_scores"], values["relevant_clip_ids"]
    clips = count_clips(duration, clip_length)
    if given is None:
        return None, None
    if ids is None and isinstance(given, (list, tuple)):
        if abs(len(given) - duration / clip_length) > _ROUNDING:
            raise _WrongKeyError(
                "saliency_scores",
                f"there must be scores of all {clips} clips, unless relevant_clip_ids says of which; got {len(given)}",
            )
        given = given[:clips]
        ids = list(range(len(given)))
    if not isinstance(ids, (list, tuple)) or not all(isinstance(x, int) and not isinstance(x, bool) for x in ids):
        raise _WrongKeyError("relevant_clip_ids", f"it must be a list of numbers of clips, got {ids!r}")
    if len(set(ids)) < len(ids):
        raise _WrongKeyError("relevant_clip_ids", "a clip stands in it twice")
    if wrong := [index for index in ids if not 0 <= index < clips]:
        raise _WrongKeyError("relevant_clip_ids", f"clip {wrong[0]} is not in a video of {duration} s, {clips} clips")
    try:
        scores = np.asarray(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise _WrongKeyError("saliency_scores", "the scores must be numbers, as many for each clip") from error
    if scores.ndim != 2 or len(scores) != len(ids) or not scores.size:
        raise _WrongKeyError(
            "saliency_scores",
            f"there must be a list of scores for each of {len(ids)} clips, got the shape {scores.shape}",
        )
    if not np.isfinite(scores).all() or (scores < 0).any():
        raise _WrongKeyError("saliency_scores", "scores must be finite and at least 0")
    return tuple(ids), scores


# --- features --------------------------------------------------------------------------------------------------------


def read_features(
    name: str,
    folders: Sequence[str | os.PathLike[str]],
    *,
    prefix: str = "",
    max_length: int | None = None,
    is_normalized: bool = True,
) -> np.ndarray:
    """Read the vectors of one video or query, `(L, size)`: those of all folders, one beside the other, in fp32.

    Args:
        name: name of the video or the query.
        folders: folders with `NAME.npz` or `NAME.npy`. Where they have different lengths, the shortest counts.
        prefix: beginning of the file's name: `qid` for queries.
        max_length: number of vectors to take from longer ones, the first ones.
        is_normalized: whether each folder's vectors are scaled to length 1, as is usual.

    Raises:
        ValueError: naming the file: if it is not there, cannot be read, or its numbers are NaN or infinite.
    """
    parts = [load_features(folder, f"{prefix}{name}") for folder in folders]
    return join_features(parts, max_length=max_length, is_normalized=is_normalized)


def join_features(
    parts: Sequence[np.ndarray], *, max_length: int | None = None, is_normalized: bool = True
) -> np.ndarray:
    """Join the vectors of all folders for `read_features`: cut to one length, normalised, side by side."""
    shortest = min(map(len, parts))
    kept = [part[:shortest][:max_length] for part in parts]
    if is_normalized:
        kept = [part / (np.linalg.norm(part, axis=-1, keepdims=True) + 1e-5) for part in kept]
    return np.concatenate(kept, axis=1).astype(np.float32)


def add_endpoints(vectors: np.ndarray) -> np.ndarray:
    """Append to the vector of every clip where it starts and ends, as fractions of the video: `(L, size + 2)`.

    Source: Escorcia et al., "Temporal Localization of Moments in Video Collections with Natural Language", arXiv
    1907.12763; the field calls them temporal endpoint features.
    """
    starts = np.arange(len(vectors), dtype=np.float32)
    ends = np.stack([starts, starts + 1], axis=1) / len(vectors)
    return np.concatenate([vectors, ends.astype(vectors.dtype)], axis=1)


def load_features(folder: str | os.PathLike[str], stem: str) -> np.ndarray:
    """The vectors in `STEM.npz` or `STEM.npy` of one folder, `(L, size)`, as they are.

    Raises:
        ValueError: as from `read_features`.
    """
    folder = Path(folder)
    path = next((path for path in (folder / f"{stem}.npz", folder / f"{stem}.npy") if path.is_file()), None)
    if path is None:
        raise ValueError(f"there is no {stem}.npz or {stem}.npy in {str(folder)!r}.")
    try:
        # Never an array of objects, which is a pickle.
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            with loaded as archive:
                names = [key for key in _ARRAYS if key in archive.files] or archive.files
                if len(names) > 1 and names[0] not in _ARRAYS:
                    raise ValueError(
                        f"it holds the arrays {', '.join(names)}, and none is called {' or '.join(_ARRAYS)}"
                    )
                loaded = archive[names[0]]
        vectors = loaded.astype(np.float64)
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    if vectors.ndim == 1:
        vectors = vectors[None]
    if vectors.ndim != 2 or not vectors.size:
        raise ValueError(f"{str(path)!r} must hold vectors (vectors, numbers), got the shape {vectors.shape}.")
    if not np.isfinite(vectors).all():
        raise ValueError(f"{str(path)!r}: {int((~np.isfinite(vectors)).sum())} of its numbers are NaN or infinite.")
    return vectors


def check_length(
    annotation: MomentAnnotation, clips: int, clip_length: float, folder: str | os.PathLike[str] | None = None
) -> None:
    """Raises a `ValueError`, naming the line, if features are of another length than the video's duration says.

    One clip more or less is a rounding.

    Args:
        annotation: annotation of the video.
        clips: number of vectors of the video.
        clip_length: length of a clip in seconds.
        folder: folder with the vectors, for the message.
    """
    expected = annotation.duration / clip_length
    if abs(clips - expected) > _ROUNDING:
        where = "" if folder is None else f" in {str(folder)!r}"
        raise ValueError(
            f"{annotation.place}, duration: {annotation.duration:g} s are {expected:g} clips of {clip_length:g} s, "
            f"and the features of {annotation.vid!r}{where} have {clips}."
        )


# --- samples ---------------------------------------------------------------------------------------------------------


def labels_of(annotation: MomentAnnotation, clips: int, clip_length: float) -> dict[str, np.ndarray]:
    """The labels to learn: `span_labels`, `(W, 2)`, and `saliency_labels`, `(clips,)`, as far as they are known.

    Spans are center and width as fractions of the clips; windows after the last clip are left out. The label of a clip
    is the sum of what people think, -1 for clips that the query does not speak of.

    Args:
        annotation: annotation of the query.
        clips: number of clips of the video.
        clip_length: length of a clip in seconds.
    """
    labels: dict[str, np.ndarray] = {}
    if annotation.windows is not None:
        windows = np.asarray(annotation.windows, dtype=np.float32) / (clips * clip_length)
        windows = windows[windows[:, 0] < 1].clip(0, 1)
        labels["span_labels"] = np.stack([windows.mean(1), windows[:, 1] - windows[:, 0]], axis=1)
    if annotation.relevant is not None and annotation.scores is not None:
        scores = np.full(clips, -1.0, dtype=np.float32)
        for clip, given in zip(annotation.relevant, annotation.scores, strict=True):
            if clip < clips:
                scores[clip] = given.sum()
        labels["saliency_labels"] = scores
    return labels


def scores_of(annotation: MomentAnnotation, clip_length: float) -> np.ndarray:
    """`(clips, people)`, the scores of all clips, which highlight metrics compare with.

    Raises:
        ValueError: if nobody scored the clips.
    """
    if annotation.relevant is None or annotation.scores is None:
        raise ValueError(f"{annotation.place}: there are no saliency_scores.")
    return clip_scores(annotation.duration, annotation.relevant, annotation.scores.tolist(), clip_length)


# --- predictions -----------------------------------------------------------------------------------------------------


def write_submission(
    path: str | os.PathLike[str],
    annotations: Iterable[MomentAnnotation],
    windows: Iterable[Sequence[Sequence[float]]],
    saliency: Iterable[Sequence[float]],
) -> None:
    """Write predictions as the evaluation script and the server of QVHighlights take them, one line for each query.

    Args:
        path: path of the jsonl file.
        annotations: annotations of the queries.
        windows: predicted windows of each query, `[start, end, score]`, the best first.
        saliency: predicted score of every clip, for each query.
    """
    path = Path(path)
    lines = [
        {
            "qid": annotation.qid,
            "query": annotation.query,
            "vid": annotation.vid,
            "pred_relevant_windows": [[round(float(x), 4) for x in window] for window in found],
            "pred_saliency_scores": [round(float(score), 4) for score in scores],
        }
        for annotation, found, scores in zip(annotations, windows, saliency, strict=True)
    ]
    with staging(path.parent, ".submission.") as folder:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / path.name).write_text(text, encoding="utf-8")
        os.replace(folder / path.name, path)

"""The data of moment retrieval: what a command line says of them, and samples of a fusion model made of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedConfig

from ..mechanism_options import json_object
from ..modeling.moment_options_hf_lam import MomentOptions
from .arguments import DataArguments, ModelArguments, RunArguments
from .data import Data, limited
from .label_padding import SALIENCY, SPANS
from .moment_files import (
    KEYS,
    MomentAnnotation,
    add_endpoints,
    check_length,
    join_features,
    labels_of,
    load_features,
    read_annotations,
)
from .moment_goal import Moments
from .sources import SOURCE

# The names of the modalities that are no streams of clips.
WORDS, AUDIO = "words", "audio"
# The stream of clips, where there is one.
_VIDEO = "video"
# By which names files of a folder are those of a split.
_STEMS = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}
_SUFFIXES = (".jsonl", ".json", ".parquet")
# Vectors that are kept once they were read; more are read again when they are needed.
_KEPT_BYTES = 2**30


@dataclass
class MomentArguments(DataArguments):
    """The options of the queries and videos, and of the vectors of both."""

    train_file: str | None = field(
        default=None,
        metadata={"help": "The training annotations in the format of QVHighlights, a jsonl, json or parquet file."},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "A folder with such files, named train, validation and test."}
    )
    video_features: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Folders with VID.npz or VID.npy, which hold a vector for each clip. The vectors of several "
            "folders are concatenated. Paths are relative to --data_dir if it is given."
        },
    )
    separate_streams: bool = field(
        default=False,
        metadata={"help": "Make each folder of --video_features a modality of its own, named after the folder."},
    )
    query_features: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Folders with qidQID.npz or qidQID.npy, which hold a vector for each word. Without them, give "
            "--text_model."
        },
    )
    audio_features: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders with vectors of the sound of videos, VID.npz or VID.npy. A video may have none."},
    )
    normalize_features: bool = field(
        default=True,
        metadata={"help": "Scale the vectors of each folder to length 1, as is usual for these benchmarks."},
    )
    endpoint_features: bool = field(
        default=True,
        metadata={
            "help": "Append to the vector of every clip where in its video it starts and ends, as two fractions, as "
            "is usual for these benchmarks."
        },
    )
    key_names: str | None = field(
        default=None,
        metadata={
            "help": "The names of keys in the files where they differ from QVHighlights, as JSON or a JSON file: "
            f'\'{{"saliency_scores": "label"}}\'. The keys are {", ".join(KEYS)}.'
        },
    )
    clip_length: float | None = field(
        default=None,
        metadata={
            "help": "The length of a clip in seconds. Unless given, that of the saved model, or "
            f"{MomentOptions.clip_length:g} for a new one."
        },
    )
    max_clips: int | None = field(
        default=None,
        metadata={
            "help": "Take only the first this many clips of longer videos. Unless given, as many as the longest "
            "video has."
        },
    )
    max_words: int | None = field(
        default=None,
        metadata={
            "help": "Take only the first this many words of longer queries. Unless given, as many as the longest "
            "query has."
        },
    )
    train_val_split: float = field(
        default=0.15,
        metadata={"help": "The share of the training videos to evaluate on if there is no validation file."},
    )
    # Options of tables with a label to a sample; the command line here has none of them.
    dataset_name: str | None = field(default=None, init=False)
    dataset_config_name: str | None = field(default=None, init=False)
    dataset_revision: str | None = field(default=None, init=False)
    delimiter: str | None = field(default=None, init=False)
    encoding: str | None = field(default=None, init=False)
    train_dir: str | None = field(default=None, init=False)
    validation_dir: str | None = field(default=None, init=False)
    test_dir: str | None = field(default=None, init=False)
    streaming: bool = field(default=False, init=False)
    shuffle_buffer_size: int = field(default=DataArguments.shuffle_buffer_size, init=False)
    train_split_name: str = field(default="train", init=False)
    validation_split_name: str = field(default="validation", init=False)
    test_split_name: str = field(default="test", init=False)
    label_column_name: str = field(default="label", init=False)
    class_names: list[str] | None = field(default=None, init=False)
    multi_hot: bool | None = field(default=None, init=False)
    per_position: bool | None = field(default=None, init=False)
    do_regression: bool = field(default=False, init=False)
    preprocessing_num_workers: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = [path for path in self.files().values() if Path(path).suffix not in _SUFFIXES]
        if wrong:
            raise ValueError(f"{wrong[0]!r}: annotations are in {', '.join(_SUFFIXES)} files.")
        for name in ("max_clips", "max_words"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}.")
        if self.clip_length is not None and not 0 < self.clip_length < float("inf"):
            raise ValueError(f"--clip_length must be more than 0 seconds, got {self.clip_length}.")
        if not self.video_features:
            raise ValueError("give --video_features: folders with the vectors of the videos' clips.")
        for folders in (self.video_features, self.query_features, self.audio_features):
            for folder in self.folders_of(folders):
                if not folder.is_dir():
                    raise ValueError(f"there is no folder of features {str(folder)!r}.")
        streams = [Path(folder).name for folder in self.video_features]
        if self.separate_streams and len(set(streams)) < len(streams):
            raise ValueError(f"--separate_streams: two of the folders have one name: {', '.join(streams)}.")
        if self.separate_streams and {WORDS, AUDIO} & set(streams):
            raise ValueError(
                f"--separate_streams: a folder of clips cannot be called {WORDS} or {AUDIO}, which are modalities of "
                "their own; rename it."
            )
        self.names_of_keys()

    def folders_of(self, folders: Iterable[str]) -> list[Path]:
        """Folders of features, as they were given."""
        return [Path(self.data_dir or "", folder) for folder in folders]

    def names_of_keys(self) -> dict[str, str]:
        """The value of `--key_names`."""
        names = json_object("--key_names", self.key_names)
        wrong = [key for key, name in names.items() if key not in KEYS or not isinstance(name, str)]
        if wrong:
            raise ValueError(f"--key_names: {wrong[0]!r}: names of {', '.join(KEYS)} are texts, got {names}.")
        return names

    def annotation_files(self) -> dict[str, Path]:
        """The files of annotations, by split."""
        if self.data_dir is None:
            return {split: Path(path) for split, path in self.files().items()}
        found = {
            split: [
                path
                for stem in stems
                for suffix in _SUFFIXES
                if (path := Path(self.data_dir, f"{stem}{suffix}")).is_file()
            ]
            for split, stems in _STEMS.items()
        }
        for split, paths in found.items():
            if len(paths) > 1:
                raise ValueError(f"--data_dir has several files of the split {split!r}: {', '.join(map(str, paths))}.")
        return {split: paths[0] for split, paths in found.items() if paths}


# --- annotations -----------------------------------------------------------------------------------------------------


def load_moments(
    data: MomentArguments, model: ModelArguments, training: RunArguments, checkpoint: PreTrainedConfig | None = None
) -> Data:
    """Load the queries of the splits that the run needs.

    Each row of a split is the number of an annotation of the goal, as `SOURCE`.

    Args:
        data: options that say where the data come from.
        model: not used.
        training: options that say what the run does.
        checkpoint: configuration of a saved model, which knows how long a clip is.

    Raises:
        ValueError: for a wrong annotation, naming file, line and key; if a split is missing.
    """
    wanted = {"train": training.do_train, "validation": training.do_eval, "test": training.do_predict}
    files, names = data.annotation_files(), data.names_of_keys()
    of_model = getattr(checkpoint, "moments", None) or {}
    clip_length = data.clip_length or of_model.get("clip_length", MomentOptions.clip_length)
    is_held_out = training.do_eval and "validation" not in files
    read: dict[str, list[MomentAnnotation]] = {}
    for split, is_wanted in wanted.items():
        source = "train" if split == "validation" and is_held_out else split
        if not is_wanted:
            continue
        if source not in files:
            raise ValueError(f"there is no file of the split {split!r}, only of {', '.join(files) or 'none'}.")
        options: Any = {"names": names, "clip_length": clip_length, "is_labelled": split != "test"}
        read[split] = read_annotations(files[source], **options)
    if is_held_out:
        read |= _hold_out(read["validation"], data.train_val_split, training.seed, training.do_train)
    for split in read.keys() - {"test"}:
        _check_windows(read[split], names.get("relevant_windows", "relevant_windows"))
    annotations = [annotation for split in read for annotation in read[split]]
    splits, first = {}, 0
    for split, of_split in read.items():
        splits[split] = Dataset.from_dict({SOURCE: list(range(first, first + len(of_split)))})
        first += len(of_split)
    shown = next(split for split in ("validation", "test", "train") if split in splits)
    rows = limited({shown: splits[shown]}, data, training.seed)[shown][SOURCE][:]
    goal = Moments(tuple(annotations), tuple(annotations[row] for row in rows), clip_length, _describe(data))
    return Data(splits, {}, goal, is_held_out)


def _hold_out(
    annotations: Sequence[MomentAnnotation], share: float, seed: int, is_trained: bool
) -> dict[str, list[MomentAnnotation]]:
    """A part of the training data to evaluate on, and the rest: no video is in both."""
    videos = sorted({annotation.vid for annotation in annotations})
    if len(videos) < 2:
        raise ValueError("the training data have one video, and nothing to evaluate on; give --validation_file.")
    random.Random(seed).shuffle(videos)
    chosen = set(videos[: min(max(1, round(share * len(videos))), len(videos) - 1)])
    parts = {"validation": [x for x in annotations if x.vid in chosen]}
    if is_trained:
        parts = {"train": [x for x in annotations if x.vid not in chosen], **parts}
    return parts


def _check_windows(annotations: Sequence[MomentAnnotation], key: str) -> None:
    """Raises a `ValueError` if some queries have windows, and others none, which is no answer that could be learnt."""
    without = next((x for x in annotations if x.windows is None), None)
    if without is not None and any(x.windows is not None for x in annotations):
        raise ValueError(f"{without.place}, {key}: it is missing, and other queries of the file have it.")


def _describe(data: MomentArguments) -> str:
    """Describe for the card where the vectors come from."""
    said = []
    for what, folders in (
        ("clips", data.video_features),
        ("words", data.query_features),
        ("the sound", data.audio_features),
    ):
        names = [f"`{Path(folder).name}`" for folder in folders]
        if names:
            said.append(f"vectors of {what} are those of {' and '.join(names)}")
    text = "; ".join(said) + (", each brought to length 1" if data.normalize_features else "")
    ends = " Beside those of a clip is where it starts and ends, as fractions of the video." * data.endpoint_features
    return f"{text[0].upper()}{text[1:]}.{ends}"


# --- vectors ---------------------------------------------------------------------------------------------------------


class MomentVectors:
    """The vectors of videos and queries, by modality. What was read is kept, up to a GiB.

    Args:
        data: options that say where the vectors are.
        streams: streams of the model; a new model has those that the folders give, each by its name, or all together.
        clip_length: length of a clip in seconds.
        max_clips: number of clips to take from longer videos, the first ones.
        max_words: number of words to take from longer queries, the first ones.

    Raises:
        ValueError: for folders that are not the streams of the model.
    """

    def __init__(
        self,
        data: MomentArguments,
        streams: Sequence[str] | None,
        clip_length: float,
        max_clips: int | None,
        max_words: int | None,
    ) -> None:
        video = data.folders_of(data.video_features)
        parts = [[folder] for folder in video] if data.separate_streams else [video]
        names = [folder.name for folder in video] if data.separate_streams else [_VIDEO]
        if streams is not None and len(streams) == len(names) == 1:
            names = list(streams)
        # Of several, each is known by its name: they may come in another order.
        if streams is not None and set(streams) != set(names):
            raise ValueError(
                f"the model has the streams of clips {', '.join(streams)}, and --video_features "
                f"{'with' if data.separate_streams else 'without'} --separate_streams are {', '.join(names)}."
            )
        self.streams = dict(zip(names, parts, strict=True))
        self.audio, self.words = data.folders_of(data.audio_features), data.folders_of(data.query_features)
        self.clip_length = clip_length
        self.max_clips, self.max_words = max_clips, max_words
        self.is_normalized = data.normalize_features
        self.has_endpoints = data.endpoint_features
        self._kept: dict[tuple[str, str], tuple[np.ndarray, tuple[int, ...]]] = {}
        self._room = _KEPT_BYTES

    def of(self, annotation: MomentAnnotation) -> dict[str, np.ndarray]:
        """The vectors of a query and its video, `(L, size)` by modality, without those that there are not.

        Raises:
            ValueError: naming file, line and key, if they cannot be read, or are of another length than the video.
        """
        clips: dict[str, np.ndarray] = {}
        for name, folders in self.streams.items():
            clips[name], lengths = self._read(annotation, name, folders)
            for folder, length in zip(folders, lengths, strict=True):
                check_length(annotation, length, self.clip_length, folder)
        shortest = min(map(len, clips.values()))
        found = {name: vectors[:shortest] for name, vectors in clips.items()}
        if self.has_endpoints:
            found = {name: add_endpoints(vectors) for name, vectors in found.items()}
        if self.audio and self._has_sound(annotation):
            found[AUDIO], _ = self._read(annotation, AUDIO, self.audio)
        if self.words:
            found[WORDS], _ = self._read(annotation, WORDS, self.words)
        return found

    def _has_sound(self, annotation: MomentAnnotation) -> bool:
        names = [f"{annotation.vid}{suffix}" for suffix in (".npz", ".npy")]
        return any(Path(folder, name).is_file() for folder in self.audio for name in names)

    def _read(
        self, annotation: MomentAnnotation, name: str, folders: Sequence[Path]
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """The vectors of all folders, and how many each of them has."""
        is_query = name == WORDS
        stem = f"qid{annotation.qid}" if is_query else annotation.vid
        key = (name, stem)
        if key in self._kept:
            return self._kept[key]
        try:
            parts = [load_features(folder, stem) for folder in folders]
        except ValueError as error:
            raise ValueError(f"{annotation.place}, {'qid' if is_query else 'vid'}: {error}") from error
        most = self.max_words if is_query else self.max_clips
        vectors = join_features(parts, max_length=most, is_normalized=self.is_normalized)
        found = (vectors, tuple(map(len, parts)))
        if vectors.nbytes <= self._room:
            self._room -= vectors.nbytes
            self._kept[key] = found
        return found

    def measure(self, annotations: Iterable[MomentAnnotation]) -> tuple[dict[str, int], dict[str, int]]:
        """Read the vectors of all these queries: how many numbers they have, and how many the longest sample has.

        Raises:
            ValueError: as from `of`; for vectors of another size than those before.
        """
        sizes: dict[str, int] = {}
        longest: dict[str, int] = {}
        for annotation in annotations:
            for name, vectors in self.of(annotation).items():
                size = sizes.setdefault(name, vectors.shape[1])
                if vectors.shape[1] != size:
                    key = "qid" if name == WORDS else "vid"
                    raise ValueError(
                        f"{annotation.place}, {key}: the vectors of its {name} have {vectors.shape[1]} numbers, those "
                        f"before {size}."
                    )
                longest[name] = max(longest.get(name, 0), len(vectors))
        return sizes, longest


# --- samples ---------------------------------------------------------------------------------------------------------


class MomentSamples(torch.utils.data.Dataset[dict[str, Any]]):
    """Samples of a fusion model: vectors, the words of a query where it has no vectors, and labels.

    Args:
        rows: numbers of the annotations.
        annotations: all annotations.
        vectors: vectors of videos and queries.
        tokenizer: `tokenizer(text)` gives the arguments of a text encoder; None where queries are vectors.
        is_trained_on: whether the model learns from them; other samples have their number as `SOURCE`.
    """

    def __init__(
        self,
        rows: Sequence[int],
        annotations: Sequence[MomentAnnotation],
        vectors: MomentVectors,
        tokenizer: Any = None,
        is_trained_on: bool = False,
    ) -> None:
        self.rows = list(rows)
        self.annotations = annotations
        self.vectors = vectors
        self.tokenizer = tokenizer
        self.is_trained_on = is_trained_on
        its = [annotations[row] for row in self.rows]
        self.kinds = (SPANS,) * all(x.windows is not None for x in its) + (SALIENCY,) * any(
            x.scores is not None for x in its
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        annotation = self.annotations[row]
        vectors = self.vectors.of(annotation)
        sample: dict[str, Any] = {f"{name}_features": values for name, values in vectors.items()}
        if self.tokenizer is not None:
            sample |= self.tokenizer(annotation.query)
        clips = len(vectors[next(iter(self.vectors.streams))])
        labels: Mapping[str, np.ndarray] = labels_of(annotation, clips, self.vectors.clip_length)
        unknown = {SALIENCY: np.full(clips, np.nan, dtype=np.float32)}
        sample |= {kind: labels.get(kind, unknown.get(kind)) for kind in self.kinds}
        return sample if self.is_trained_on else {**sample, SOURCE: row}

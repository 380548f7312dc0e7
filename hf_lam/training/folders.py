"""Folders of images, videos or audio, with a folder for each class."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Audio, ClassLabel, Dataset, Features, Image, IterableDataset, Value, Video
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.videofolder.videofolder import VideoFolder
from transformers.utils import logging

from .arguments import DataArguments
from .columns import MOST_SHOWN, columns_of, list_first
from .sources import ENCODED_FILE, SOURCE, Sources, file_sources
from .tables import load_tables

logger = logging.get_logger(__name__)

_KINDS: dict[str, tuple[Any, frozenset[str]]] = {
    "image": (Image, frozenset(ImageFolder.EXTENSIONS)),
    # Before audio, whose files may end in .mp4 too.
    "video": (Video, frozenset(VideoFolder.EXTENSIONS)),
    "audio": (Audio, frozenset(AudioFolder.EXTENSIONS)),
}

# What folders of splits are called, as `datasets` has it.
_SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}

# What makes a folder a data set of another form.
_TABLES = {".csv", ".tsv", ".json", ".jsonl", ".parquet"}
_ARCHIVES = {".zip", ".tar", ".gz", ".arrow"}

# A stream of files is divided among so many workers at most.
_MOST_SHARDS = 64


@dataclass
class Folder:
    """The files of one split.

    root: the folder.
    classes: files of every class, as paths from `root`.
    flat: the files that lie in no folder of a class.
    metadata: the table that says which files there are, and what they are; None without one.
    """

    root: Path
    classes: dict[str, list[str]] = field(default_factory=dict)
    flat: list[str] = field(default_factory=list)
    metadata: str | None = None


def split_folders(root: Path) -> dict[str, Path] | None:
    """The folders of splits in a folder, or the folder itself as that of the split train.

    None for what has another form: several folders for one split. Folders beside those of the splits are named in the
    log; a class may be called like a split ("train"), if it is the only one.
    """
    found: dict[str, list[Path]] = {}
    others = []
    for path in _folders_in(root):
        words = set(re.split(r"[-._ 0-9]+", path.name.lower()))
        split = next((split for split, usual in _SPLIT_WORDS.items() if words & usual), None)
        if split is not None:
            found.setdefault(split, []).append(path)
        else:
            others.append(path)
    if not found or (others and sum(map(len, found.values())) == 1 and not _folders_in(next(iter(found.values()))[0])):
        return {"train": root}
    if any(len(paths) > 1 for paths in found.values()):
        return None
    if others:
        logger.warning(
            f"{str(root)!r} has folders for {', '.join(found)}; what lies in "
            f"{list_first([repr(path.name) for path in others[:MOST_SHOWN]], len(others))} is left out."
        )
    return {split: paths[0] for split, paths in found.items()}


def read_folders(folders: Mapping[str, Path], are_splits: bool = True) -> tuple[str, dict[str, Folder]] | None:
    """Find out what lies in folders of splits, and whether that is `"image"`, `"video"` or `"audio"`.

    Tables beside folders of classes, or beside a table of metadata, are left out and named in the log.

    Args:
        folders: folder of every split.
        are_splits: whether the folders are named as splits; otherwise a table in them may be the data.

    Returns:
        None for what has another form: archives, tables, files that lie deeper, no such files at all.
    """
    files = {split: _files_in(root) for split, root in folders.items()}
    suffixes = [path.suffix.lower() for paths in files.values() for path in paths]
    numbers = {name: sum(suffix in known for suffix in suffixes) for name, (_, known) in _KINDS.items()}
    kind = max(numbers, key=lambda name: numbers[name])
    if not numbers[kind]:
        return None
    read: dict[str, Folder] = {}
    tables = []
    for split, root in folders.items():
        found = read[split] = Folder(root)
        for path in files[split]:
            inner = path.relative_to(root)
            if path.name in ImageFolder.METADATA_FILENAMES and len(inner.parts) == 1 and found.metadata is None:
                found.metadata = str(path)
            elif path.suffix.lower() in _ARCHIVES or path.name in ImageFolder.METADATA_FILENAMES:
                return None
            elif path.suffix.lower() in _TABLES:
                tables.append(str(Path(root.name, inner)))
            elif path.suffix.lower() in _KINDS[kind][1]:
                if len(inner.parts) == 1:
                    found.flat.append(str(inner))
                elif len(inner.parts) == 2 or found.metadata is not None:
                    found.classes.setdefault(inner.parts[0], []).append(str(inner))
                else:
                    return None
    if tables:
        if not are_splits or not any(folder.metadata or len(folder.classes) > 1 for folder in read.values()):
            return None
        logger.warning(
            f"{len(tables)} tables lie in the folders of the data, and are left out: "
            f"{list_first([repr(name) for name in tables[:MOST_SHOWN]], len(tables))}."
        )
    return kind, read


def _folders_in(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _files_in(root: Path) -> list[Path]:
    """The files of a folder, those of its folders after its own."""
    found = []
    for folder, names, files in os.walk(root, followlinks=True):
        names[:] = sorted(name for name in names if not _is_hidden(name))
        found += [Path(folder, name) for name in sorted(files) if not _is_hidden(name)]
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def load_folders(
    kind: str, folders: Mapping[str, Folder], data: DataArguments, cache_dir: str | None
) -> dict[str, tuple[Dataset | IterableDataset, Sources]]:
    """The files of every split, as a column `image`, `video` or `audio` of paths, and their classes as `label`.

    The classes are the folders of all splits, in alphabetical order. Files that lie beside the folders of classes are
    left out, and named in the log. A split that has no folders of classes has no labels; likewise the split test
    whose only folder is none of the classes. Where there is a table of metadata, it says which files and labels there
    are instead.
    """
    known = {name for split, folder in folders.items() if split != "test" for name in folder.classes}
    test = folders.get("test")
    if test is not None and known and len(test.classes) == 1 and not test.flat and not known & set(test.classes):
        (name,) = test.classes
        logger.warning(
            f"The files of the split 'test' lie in one folder {name!r}, which is no class of the training data: they "
            "are taken as files without labels."
        )
        folders = {**folders, "test": Folder(test.root, flat=test.classes[name])}
    classes = sorted({name for folder in folders.values() for name in folder.classes})
    return {
        split: _load_metadata(kind, folder, data, cache_dir)
        if folder.metadata is not None
        else _load_files(kind, split, folder, classes, data)
        for split, folder in folders.items()
    }


def _load_files(
    kind: str, split: str, folder: Folder, classes: Sequence[str], data: DataArguments
) -> tuple[Dataset | IterableDataset, Sources]:
    files, labels = folder.flat, None
    if folder.classes:
        if folder.flat:
            logger.warning(
                f"{len(folder.flat)} files of the split {split!r} lie beside the folders of the classes, and are left "
                f"out: {list_first([repr(name) for name in folder.flat[:MOST_SHOWN]], len(folder.flat))}."
            )
        labels = [label for label in sorted(folder.classes) for _ in folder.classes[label]]
        files = [name for label in sorted(folder.classes) for name in folder.classes[label]]
    paths = [{"bytes": None, "path": str(Path(folder.root, name).absolute())} for name in files]
    columns: dict[str, Any] = {kind: paths, SOURCE: file_sources(len(files))}
    features: dict[str, Any] = {kind: ENCODED_FILE, SOURCE: Value("int64")}
    if labels is not None:
        columns["label"], features["label"] = labels, ClassLabel(names=list(classes))
    dataset: Any = Dataset.from_dict(columns, features=Features(features))
    dataset = dataset.cast_column(kind, _KINDS[kind][0](decode=False))
    if data.streaming and files:
        dataset = dataset.to_iterable_dataset(num_shards=min(_MOST_SHARDS, len(files)))
    return dataset, Sources([str(Path(folder.root.name, name)) for name in files], is_sample_a_file=True)


def _load_metadata(
    kind: str, folder: Folder, data: DataArguments, cache_dir: str | None
) -> tuple[Dataset | IterableDataset, Sources]:
    table = os.path.join(folder.root.absolute(), Path(str(folder.metadata)).name)
    dataset, sources = load_tables([table], data, cache_dir)
    named = {
        name: name.removesuffix("file_name").removesuffix("_") or kind
        for name in columns_of(dataset)
        if name == "file_name" or name.endswith("_file_name")
    }
    if not named:
        raise ValueError(
            f"{table!r} must have a column 'file_name' with the files, it has {', '.join(columns_of(dataset))}."
        )

    def with_paths(row: dict[str, Any]) -> dict[str, Any]:
        found = {new: row[old] and str(Path(folder.root.absolute(), row[old])) for old, new in named.items()}
        return {**{name: value for name, value in row.items() if name not in named}, **found}

    return dataset.map(with_paths, remove_columns=list(named)), sources

"""The folder of cached features: Arrow files that are written one by one, and read as a data set of `datasets`.

The folder is what `Dataset.save_to_disk` writes, so `datasets.load_from_disk` reads it, from memory-mapped files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Value
from datasets.config import DATASET_INFO_FILENAME, DATASET_STATE_JSON_FILENAME

from ..modeling.saving_hf_lam import staging

# The file that describes the folder.
CACHE_FILE = "feature_cache.json"
# The beginning of the names of folders in which files are written before they take their place.
_PARTIAL = ".caching."
_VERSION = 2


class FeatureFolder:
    """A folder that is filled shard by shard.

    A shard takes its place when it is whole, and is written down then: whenever the process dies, what is written down
    is there. Started again, the folder ends with the same bytes.

    shards: for every shard that is whole, the number of its rows, and the hashes of some, by their numbers in it.
    is_complete: whether there are no more to come.
    features: types of the columns so far, as Arrow has them; None before there are any rows.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], partial: Path) -> None:
        self.path = path
        self.identity = identity
        self.shards: list[dict[str, Any]] = []
        self.is_complete = False
        self.features: Features | None = None
        self._partial = partial

    @classmethod
    @contextmanager
    def open(cls, path: Path, identity: Mapping[str, Any]) -> Iterator[FeatureFolder]:
        """Open the folder, new or as an earlier run left it.

        Args:
            path: the folder.
            identity: description of what the features are made of, for JSON.

        Raises:
            ValueError: if the folder holds features of something else, or other files.
        """
        found = _read(path)
        if found is not None:
            _check_identity(path, found, identity)
        path.mkdir(parents=True, exist_ok=True)
        with staging(path, _PARTIAL) as partial:
            folder = cls(path, identity, partial)
            if found is None:
                folder._write_down()
            else:
                folder.is_complete = found["is_complete"]
                # The last one is shorter, and another run may have more rows to put into it.
                is_whole = [folder.is_complete or shard["rows"] == identity["shard_size"] for shard in found["shards"]]
                folder.shards = [shard for shard, whole in zip(found["shards"], is_whole, strict=True) if whole]
                if folder.shards:
                    folder.features = _features_in(folder._file(len(folder.shards) - 1))
            yield folder

    @property
    def rows(self) -> int:
        """The number of rows so far."""
        return sum(shard["rows"] for shard in self.shards)

    @property
    def hashes(self) -> dict[int, str]:
        """Hashes of some rows of the data set that the features were made of, by their numbers."""
        size = self.identity["shard_size"]
        return {
            number * size + int(row): digest
            for number, shard in enumerate(self.shards)
            for row, digest in shard["hashes"].items()
        }

    def check_row(self, row: int, expected: str, found: str) -> None:
        """Whether a row is the one that its features were made of; a `ValueError` if it is not."""
        if found != expected:
            raise ValueError(
                f"row {row} of the data set is not the one that the features in {str(self.path)!r} were made of. "
                "Give another output_dir for another data set. Rows that are made anew each time, with random crops "
                "for example, cannot be cached."
            )

    @contextmanager
    def writing(self) -> Iterator[ShardWriter]:
        """A new shard, which takes its place at the end."""
        number = len(self.shards)
        writer = ShardWriter(self._partial, f"{number:05d}", self.features)
        with writer:
            yield writer
        os.replace(writer.path, self._file(number))
        self.features = writer.features
        self.shards.append({"rows": writer.rows, "hashes": writer.hashes})
        self._write_down()

    def finish(self, columns: list[str]) -> None:
        """Let all shards have the same types, and the folder be a data set.

        columns: those that are read as numpy arrays.
        """
        assert self.features is not None
        for number in range(len(self.shards)):
            if _features_in(self._file(number)) != self.features:
                with ShardWriter(self._partial, f"{number:05d}", self.features) as writer:
                    for dataset in _batches_in(self._file(number)):
                        writer.write(dataset)
                os.replace(writer.path, self._file(number))
        content = {**self.identity, "shards": self.shards}
        state = {
            "_data_files": [{"filename": self._file(number).name} for number in range(len(self.shards))],
            "_fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
            "_format_columns": [name for name in self.features if name in columns],
            "_format_kwargs": {},
            "_format_type": "numpy",
            "_output_all_columns": True,
            "_split": None,
        }
        DatasetInfo(features=self.features).write_to_directory(str(self._partial))
        os.replace(self._partial / DATASET_INFO_FILENAME, self.path / DATASET_INFO_FILENAME)
        self._replace(DATASET_STATE_JSON_FILENAME, state)
        self.is_complete = True
        self._write_down()

    def _file(self, number: int) -> Path:
        return self.path / f"data-{number:05d}.arrow"

    def _write_down(self) -> None:
        self._replace(CACHE_FILE, {**self.identity, "shards": self.shards, "is_complete": self.is_complete})

    def _replace(self, name: str, content: Mapping[str, Any]) -> None:
        partial = self._partial / name
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self.path / name)


class ShardWriter:
    """One Arrow file that rows are added to.

    The types of columns are those of the first rows, and wider ones where later rows need them: a column of nothing
    but None may hold texts later, and integers may be followed by other numbers.

    path: path of the file.
    features: types of its columns.
    rows: number of its rows.
    hashes: hashes of some rows, by their numbers, which the caller adds.
    """

    def __init__(self, folder: Path, name: str, features: Features | None) -> None:
        self.features = features
        self.rows = 0
        self.hashes: dict[str, str] = {}
        self._folder, self._name, self._attempt = folder, name, 0
        self._writer: pa.RecordBatchStreamWriter | None = None

    @property
    def path(self) -> Path:
        return self._folder / f"{self._name}.{self._attempt}.arrow"

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, dataset: Dataset) -> None:
        """Add rows.

        Raises:
            ValueError: if a column holds values of another type than earlier rows.
        """
        features = dataset.features if self.features is None else merge_features(self.features, dataset.features)
        if self._writer is None or features != self.features:
            self._open(features)
        self._write(dataset)
        self.rows += len(dataset)

    def _open(self, features: Features) -> None:
        """A file for these types, with the rows that were written for others."""
        self.features = features
        earlier = None
        if self._writer is not None:
            self._writer.close()
            earlier = self.path
            self._attempt += 1
        self._writer = pa.ipc.new_stream(str(self.path), features.arrow_schema)
        if earlier is not None:
            for dataset in _batches_in(earlier):
                self._write(dataset)

    def _write(self, dataset: Dataset) -> None:
        assert self._writer is not None and self.features is not None
        table, schema = dataset.data.table, self.features.arrow_schema
        columns = []
        for field in schema:
            if field.name not in table.column_names:
                columns.append(pa.nulls(len(table), field.type))
            elif table[field.name].type == field.type:
                columns.append(table[field.name])
            else:
                columns.append(table[field.name].cast(field.type))
        self._writer.write_table(pa.table(columns, schema=schema).combine_chunks())


def merge_features(earlier: Features, later: Features) -> Features:
    """Types that hold the rows of both.

    Raises:
        ValueError: if there are none for a column.
    """
    merged = {}
    for name in {**earlier, **later}:
        pair = [features[name] for features in (earlier, later) if features.get(name, Value("null")) != Value("null")]
        if not pair or pair[0] == pair[-1]:
            merged[name] = pair[0] if pair else Value("null")
            continue
        schemas = [Features({name: feature}).arrow_schema.remove_metadata() for feature in pair]
        try:
            schema = pa.unify_schemas(schemas, promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise ValueError(
                f"the column {name!r} has {pair[0]} in some rows and {pair[1]} in later ones. Make them the same, or "
                "leave the column out of keep_columns."
            ) from error
        merged |= Features.from_arrow_schema(schema)
    return Features(merged)


def _features_in(path: Path) -> Features:
    with pa.OSFile(str(path)) as file:
        return Features.from_arrow_schema(pa.ipc.open_stream(file).schema)


def _batches_in(path: Path) -> Iterator[Dataset]:
    with pa.OSFile(str(path)) as file:
        for batch in pa.ipc.open_stream(file):
            yield Dataset(pa.Table.from_batches([batch]))


def _read(path: Path) -> dict[str, Any] | None:
    """Read a folder's description of itself; None for one that is new or empty."""
    if os.path.lexists(path) and not path.is_dir():
        raise ValueError(f"cannot cache features in {str(path)!r}: it is no folder. Give another output_dir.")
    file = path / CACHE_FILE
    if file.is_file():
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{str(file)!r} cannot be read: {error}. Give another output_dir.") from error
    others = sorted(name for name in os.listdir(path) if not name.startswith(_PARTIAL)) if path.is_dir() else []
    if others:
        raise ValueError(
            f"{str(path)!r} has other files, such as {others[0]!r}, and no {CACHE_FILE}: give cached features a "
            "folder of their own."
        )
    return None


def make_identity(
    encoders: Mapping[str, str], dtype: str, shard_size: int, keep_columns: list[str] | None, rows: int | None
) -> dict[str, Any]:
    """Describe what cached features are made of, as it is written to the folder.

    Args:
        encoders: a hash of every encoder, by modality.
        dtype: dtype of the features.
        shard_size: number of rows in one file.
        keep_columns: columns that are kept besides.
        rows: number of rows in the data set, if it is known.
    """
    return {
        "version": _VERSION,
        "encoders": dict(encoders),
        "dtype": dtype,
        "shard_size": shard_size,
        "keep_columns": keep_columns,
        "rows": rows,
    }


def _check_identity(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """A `ValueError` that names what a folder was written for, if it is something else."""
    problem = None
    encoders: Mapping[str, str] = found.get("encoders", {})
    others = [name for name, digest in wanted["encoders"].items() if encoders.get(name, digest) != digest]
    if found.get("version") != wanted["version"]:
        problem = f"were written by another version of hf_lam ({CACHE_FILE} has version {found.get('version')!r})"
    elif encoders.keys() != wanted["encoders"].keys():
        problem = f"are of {', '.join(encoders)}, and those of {', '.join(wanted['encoders'])} are wanted"
    elif others:
        problem = f"were made by another model: the weights or options of its {', '.join(others)} encoder are others"
    elif found["rows"] != wanted["rows"]:
        problem = f"are of another data set, of {found['rows']} rows; this one has {wanted['rows']}"
    else:
        for name in ("dtype", "shard_size", "keep_columns"):
            if found[name] != wanted[name]:
                problem = f"were written with {name}={found[name]!r}, and now it is {wanted[name]!r}"
    if problem is not None:
        raise ValueError(f"the features in {str(path)!r} {problem}. Give another output_dir, or delete that one.")

"""Run the encoders of a fusion model once over a data set, and train on what they gave."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Array2D, Dataset, Features, concatenate_datasets, load_from_disk
from datasets.config import DATASETDICT_JSON_FILENAME
from filelock import FileLock
from transformers.utils import logging

from ..modeling.configuration_hf_lam_fusion import ModalityArguments, feature_arguments
from ..modeling.fusion_encoders_hf_lam import ModalityInput, check_encoder_input, run_encoder
from ..modeling.option_checks_hf_lam import is_count
from .collators import FusionCollator
from .feature_models import check_fusion, encoded_modalities, make_features_model
from .feature_rows import Batch, RowReader, has_index, length_of, read_batches
from .feature_shards import FeatureFolder, make_identity

# What features are stored as. (Arrow has no bfloat16.)
DTYPES = {torch.float16: "float16", torch.float32: "float32"}
# So many bytes of features are written at once.
_WRITTEN = 2**24
_SPLIT = re.compile(r"\w+(\.\w+)*")
# Keys of configurations that change nothing in what an encoder computes.
_NOT_COMPUTED = ("_name_or_path", "transformers_version", "dtype", "architectures")


def cache_features(
    model: Any,
    dataset: Any,
    output_dir: str | os.PathLike[str],
    *,
    processor: Any = None,
    transform: Callable[[Any], Mapping[str, Any]] | None = None,
    modalities: Sequence[str] | None = None,
    keep_columns: Sequence[str] | None = None,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float16,
    shard_size: int = 1000,
    num_workers: int = 0,
    device: str | torch.device | None = None,
) -> tuple[Any, Any]:
    """Run the encoders of a fusion model once over a data set, as if they were frozen, and keep their outputs.

        dataset, features_model = cache_features(model, dataset, "cache", processor=processor)
        trainer = HfLamTrainer(
            model=features_model, args=arguments, train_dataset=dataset, data_collator=FusionCollator()
        )
        trainer.train()
        load_trained_fusion(model, features_model).save_pretrained("model")

    Training the features model on these data has the gradients that training `model` with its encoders frozen and in
    evaluation mode would have, but for rounding to `dtype`.

    If the process dies, the files it wrote stay: called again, it goes on there, and the folder ends with the same
    files. When several processes share the folder, one fills it while the others wait. A complete folder is only
    opened, after a check that some rows are still the same: those at the beginning, and the first of every file.
    Memory does not grow with the data set.

    Args:
        model: a fusion model of any class. Its encoders run in evaluation mode and without gradients, in their own
            dtype or under the autocast of the caller; the model is left as it was.
        dataset: rows as `FusionCollator` takes them. A `Dataset` or anything else with a length and an index; a stream
            (`IterableDataset`, or anything else that can be iterated over); or a mapping from names of splits to them.
        output_dir: a folder for the features alone, new or from an earlier call. `datasets.load_from_disk` reads it;
            of a mapping, every split has a folder in it.
        processor: the model's processor or its tokenizer, which pads texts; `None` for models without text.
        transform: function that makes such a row out of a row of the data set; `None` if they are such rows.
        modalities: names of the modalities to cache; `None` for all that have encoders. The others keep theirs.
        keep_columns: names of the columns to keep beside the inputs of the modalities that are not cached; `None` for
            all that rows have (after `transform`).
        batch_size: number of rows that run through the encoders together.
        dtype: dtype of the features on the disk, `torch.float16` or `torch.float32`.
        shard_size: number of rows in one file.
        num_workers: number of processes that make rows ready; a stream is read in this one.
        device: device to run the encoders on; `None` for where they are. They are moved back at the end.

    Returns:
        The data set, or a `DatasetDict` of the splits, from memory-mapped files: for a modality `NAME`, the column
        `NAME_features` has an array `(tokens, width)` of the tokens that count, with no tokens where the row lacks the
        modality. And the features model: of the same class, with the same weights, and with `features` in place of the
        encoders.

    Raises:
        TypeError: if `model` is no fusion model, or a row is no mapping.
        ValueError: for an option outside of the above, a folder with the features of another model or of other data,
            and features that `dtype` cannot hold. The message names it.
    """
    check_fusion(model)
    names = _check_options(model, modalities, batch_size, dtype, shard_size, num_workers)
    splits = dataset if isinstance(dataset, Mapping) else {None: dataset}
    if not splits or any(split is not None and not _SPLIT.fullmatch(str(split)) for split in splits):
        raise ValueError(
            f"the splits must have names of letters, digits and underscores, got {list(splits)}: folders have them."
        )
    for split, rows in splits.items():
        if not (has_index(rows) or isinstance(rows, Iterable)) or isinstance(rows, (str, bytes)):
            where = "" if split is None else f" of the split {split!r}"
            raise TypeError(f"the data set{where} must be one, or something with rows, got {type(rows).__name__}.")
    features_model = make_features_model(model, names)
    root = Path(output_dir)
    encoders = {name: model.base_model.modality_model(name) for name in names}
    digests = {name: _hash_encoder(encoder) for name, encoder in encoders.items()}
    keep = None if keep_columns is None else list(keep_columns)
    reader = RowReader(
        transform,
        FusionCollator(processor),
        {name: model.config.modality_arguments(name) for name in names},
        {name: model.config.modality_arguments(name) for name in model.config.modalities if name not in names},
        keep,
        shard_size,
    )
    widths = {name: features_model.config.features[name]["size"] for name in names}
    run = _Encoders(model.base_model, reader.cached, widths, dtype)
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")), _evaluating(encoders.values(), device):
        for split, rows in splits.items():
            identity = make_identity(digests, DTYPES[dtype], shard_size, keep, length_of(rows))
            path = root if split is None else root / str(split)
            description = "Caching features" if split is None else f"Caching features of {split}"
            with FeatureFolder.open(path, identity) as folder:
                _fill(folder, run, rows, reader, batch_size, num_workers, description)
        if None not in splits:
            partial = root / f".{DATASETDICT_JSON_FILENAME}"
            partial.write_text(json.dumps({"splits": [str(split) for split in splits]}), encoding="utf-8")
            os.replace(partial, root / DATASETDICT_JSON_FILENAME)
    made = load_from_disk(str(root))
    parts = list(made.values()) if None not in splits else [made]
    longer = [name for name in names if _is_longer(parts, name, features_model.config.features[name]["max_length"])]
    return made, make_features_model(model, names, longer) if longer else features_model


def _is_longer(datasets: Iterable[Dataset], name: str, limit: int | None) -> bool:
    """Whether a modality has more tokens in some row than its encoder was made for."""
    chunks = [chunk for dataset in datasets for chunk in dataset.data.column(feature_arguments(name).values).chunks]
    return limit is not None and any(
        (pc.max(pc.list_value_length(chunk.storage)).as_py() or 0) > limit for chunk in chunks
    )


def _check_options(
    model: Any, modalities: Sequence[str] | None, batch_size: int, dtype: Any, shard_size: int, num_workers: int
) -> list[str]:
    """The modalities to cache, in the order of the model."""
    for option, value, least in (
        ("batch_size", batch_size, 1),
        ("shard_size", shard_size, 1),
        ("num_workers", num_workers, 0),
    ):
        if not is_count(value, least):
            raise ValueError(f"{option} must be an integer of at least {least}, got {value!r}.")
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype must be one of {', '.join(map(str, DTYPES))}, in which features can be stored, got {dtype!r}."
        )
    encoded = encoded_modalities(model)
    wanted = encoded if modalities is None else modalities
    if isinstance(wanted, str) or not wanted or not set(wanted) <= set(encoded):
        raise ValueError(
            f"modalities must be some of those that have encoders, {encoded}, got {wanted!r}; the model has "
            f"{model.config.modalities}."
        )
    return [name for name in encoded if name in wanted]


# --- through the encoders, to the disk -------------------------------------------------------------------------------


class _Encoders:
    """The encoders of the modalities that are cached."""

    def __init__(
        self, base: Any, arguments: Mapping[str, ModalityArguments], widths: Mapping[str, int], dtype: torch.dtype
    ) -> None:
        self.base = base
        self.arguments = arguments
        self.widths = widths
        self.dtype = dtype

    @torch.no_grad()
    def __call__(self, batch: Batch) -> dict[str, list[np.ndarray]]:
        """Encode every modality: the tokens of each row, `(tokens, width)`; no tokens where it lacks the modality."""
        made = {}
        for name, width in self.widths.items():
            nothing = np.zeros((0, width), DTYPES[self.dtype])
            tokens: dict[int, Any] = {}
            for rows, inputs in batch.inputs[name]:
                tokens |= self._run(name, rows, inputs, batch.number)
            made[feature_arguments(name).values] = [tokens.get(row, nothing) for row in range(batch.size)]
        return made

    def _run(self, name: str, rows: list[int], inputs: Mapping[str, torch.Tensor], first: int) -> dict[int, Any]:
        encoder, arguments = self.base.modality_model(name), self.arguments[name]
        tensors = {key: inputs[key].to(encoder.device) for key in arguments.names if key in inputs}
        mask = None if arguments.mask is None else tensors.get(arguments.mask)
        others = {other: tensors[key] for key, other in arguments.others.items() if key in tensors}
        given = ModalityInput(tensors[arguments.values], mask, others, None)
        longest = self.base.max_lengths[self.base.config.modalities.index(name)]
        check_encoder_input(name, encoder, given, arguments, longest)
        hidden_states, token_mask = run_encoder(name, encoder, given.values, mask, others)
        stored = hidden_states.to(self.dtype).cpu()
        counts = stored.new_ones(stored.shape[:2], dtype=torch.bool) if token_mask is None else token_mask.cpu()
        made = {row: tokens[counted] for row, tokens, counted in zip(rows, stored, counts, strict=True)}
        for row, tokens in made.items():
            if not tokens.isfinite().all():
                raise ValueError(
                    f"what the {name} encoder {type(encoder).__name__} makes of row {first + row} is not finite as "
                    f"{DTYPES[self.dtype]}. "
                    + ("Give dtype=torch.float32." if self.dtype == torch.float16 else "Look at that row.")
                )
        return {row: tokens.numpy() for row, tokens in made.items()}


def _fill(
    folder: FeatureFolder,
    encoders: _Encoders,
    rows: Any,
    reader: RowReader,
    batch_size: int,
    num_workers: int,
    description: str,
) -> None:
    """Write what is not yet in a folder."""
    types = _types_of(rows) if reader.transform is None else None
    with logging.tqdm(
        total=length_of(rows), initial=folder.rows, desc=description, unit=" rows", disable=folder.is_complete
    ) as progress:
        batches = read_batches(folder, rows, reader, batch_size, num_workers)
        for batch in batches:
            with folder.writing() as writer:
                for hashes, dataset in _tables(_shard_from(batch, batches, reader.shard_size), encoders, types):
                    writer.hashes |= hashes
                    writer.write(dataset)
                    progress.update(len(dataset))
    if folder.is_complete:
        return
    if not folder.shards:
        raise ValueError(f"the data set for {str(folder.path)!r} has no rows.")
    inputs = {key for arguments in reader.others.values() for key in arguments.names}
    folder.finish([*(feature_arguments(name).values for name in reader.cached), *inputs])


def _shard_from(batch: Batch, others: Iterator[Batch], shard_size: int) -> Iterator[Batch]:
    """The batches of one shard. The first of the next is not asked for: a shard is not to wait for it."""
    yield batch
    while (batch.number + batch.size) % shard_size:
        following = next(others, None)
        if following is None:
            return
        batch = following
        yield batch


def _tables(
    batches: Iterable[Batch], encoders: _Encoders, types: Features | None
) -> Iterator[tuple[dict[str, str], Dataset]]:
    """The rows of several batches together, so many that they are worth writing, and the hashes of some of them."""
    hashes: dict[str, str] = {}
    kept: list[dict[str, Any]] = []
    features: dict[str, list[np.ndarray]] = {}
    size = 0
    for batch in batches:
        hashes |= {str(row): digest for row, digest in batch.hashes.items()}
        kept += batch.kept
        for column, tokens in encoders(batch).items():
            features.setdefault(column, []).extend(tokens)
            size += sum(array.nbytes for array in tokens)
        size += sum(getattr(value, "nbytes", 0) for row in batch.kept for value in row.values())
        if size >= _WRITTEN:
            yield hashes, _table(kept, features, types, encoders)
            hashes, kept, features, size = {}, [], {}, 0
    if kept:
        yield hashes, _table(kept, features, types, encoders)


def _table(
    kept: Sequence[Mapping[str, Any]],
    features: Mapping[str, list[np.ndarray]],
    types: Features | None,
    encoders: _Encoders,
) -> Dataset:
    arrays = {
        feature_arguments(name).values: Array2D((None, width), DTYPES[encoders.dtype])
        for name, width in encoders.widths.items()
    }
    made = Dataset.from_dict(dict(features), features=Features(arrays))
    columns = list(dict.fromkeys(key for row in kept for key in row))
    if not columns:
        return made
    values = {key: [row.get(key) for row in kept] for key in columns}
    known = None if types is None or not set(columns) <= set(types) else Features({key: types[key] for key in columns})
    return concatenate_datasets([Dataset.from_dict(values, features=known), made], axis=1)


def _types_of(rows: Any) -> Features | None:
    """The types of the columns of a data set of `datasets`; None if it does not say, or changes rows on the way."""
    is_changed = (getattr(rows, "format", None) or {}).get("type") == "custom" if isinstance(rows, Dataset) else False
    return None if is_changed else getattr(rows, "features", None)


@contextmanager
def _evaluating(encoders: Iterable[Any], device: str | torch.device | None) -> Iterator[None]:
    """Encoders in evaluation mode, and on a device, for a while."""
    encoders = list(encoders)
    modes = [(module, module.training) for encoder in encoders for module in encoder.modules()]
    places = [encoder.device for encoder in encoders]
    try:
        for encoder in encoders:
            encoder.eval()
            if device is not None:
                encoder.to(device)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        if device is not None:
            for encoder, place in zip(encoders, places, strict=True):
                encoder.to(place)


# --- hashes ----------------------------------------------------------------------------------------------------------


def hash_encoders(model: Any) -> str:
    """A short hash of what a fusion model's encoders compute, for the name of a folder with their features."""
    digests = {name: _hash_encoder(model.base_model.modality_model(name)) for name in encoded_modalities(model)}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]


def _hash_encoder(encoder: Any) -> str:
    """A hash of what decides what an encoder computes."""
    options = {key: value for key, value in encoder.config.to_diff_dict().items() if key not in _NOT_COMPUTED}
    digest = hashlib.sha256(json.dumps([type(encoder).__name__, options], sort_keys=True, default=str).encode())
    for key, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

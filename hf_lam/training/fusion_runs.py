"""The common part of scripts that train fusion models: how rows are read, and encoders that run once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..modeling.hosts_hf_lam import max_length_of
from .columns import AnyDataset
from .data import limited
from .feature_caching import cache_features, hash_encoders
from .feature_models import encoded_modalities, make_features_model
from .fusion_loading import find_columns, find_vectors, load_fusion_processor
from .fusion_rows import FusionRows
from .media_data import root_of
from .vectors import as_arrays, find_scales

if TYPE_CHECKING:
    from .finetuning import Task


class Reading(NamedTuple):
    """The reader of a run's rows.

    splits: those of the task, with vectors as arrays.
    processor: processor of the model.
    rows: reads a row, and makes inputs of it.
    """

    splits: dict[str, AnyDataset]
    processor: Any
    rows: FusionRows


def open_rows(
    task: Task,
    model: Any,
    sizes: Mapping[str, int],
    first: AnyDataset,
    *,
    label_column: str | None = None,
    decoder_tokenizer: Any = None,
) -> Reading:
    """Find the columns of a model's modalities, and load or make its processor.

    Args:
        task: task with `FusionArguments` and `MultimodalArguments`.
        model: a fusion model.
        sizes: size of the vectors of each modality of a new model.
        first: one of the splits, with the columns that modalities may be in.
        label_column: column of labels of positions.
        decoder_tokenizer: tokenizer of what a new model writes.

    Raises:
        ValueError: for columns that are not there, or not clear, and a processor without one of the modalities.
    """
    arguments, data, config = task.arguments, task.data, model.config
    columns = find_columns(first, data, config)
    vectors = find_vectors(first, arguments, config)
    splits = {split: as_arrays(dataset, vectors.values()) for split, dataset in task.splits.items()}
    scales: Mapping[str, Any] = {}
    if arguments.standardize_features:
        trained = limited({"train": splits["train"]}, data, task.training.seed)["train"]
        scales = find_scales(trained, vectors, sizes, root_of(data, "train"))
    processor = load_fusion_processor(
        arguments,
        config,
        arguments.encoders(),
        scales=scales,
        resizing=arguments.resizing(),
        decoder_tokenizer=decoder_tokenizer,
    )
    max_tokens = data.max_seq_length
    if "text" in columns:
        max_tokens = most_tokens(max_tokens, model, processor)
    rows = FusionRows(
        config,
        processor,
        columns,
        vectors,
        label_column=label_column,
        max_tokens=max_tokens,
        max_seconds=data.max_seconds,
        is_mel_first=data.spectrogram_mel_first,
        cuts_window=data.cut_to_sound,
    )
    return Reading(splits, processor, rows)


def most_tokens(wanted: int, model: Any, processor: Any) -> int:
    """The most tokens of a text that the user, the tokenizer and the encoder of texts allow."""
    lengths = (wanted, processor.tokenizer.model_max_length, max_length_of(model.base_model.text_model))
    return min(filter(None, lengths))


def run_encoders_once(
    task: Task, model: Any, splits: Mapping[str, AnyDataset], processor: Any
) -> tuple[Any, dict[str, AnyDataset]] | None:
    """The features model of a run and its data, if `--cache_features` names a folder for them; None otherwise.

    Each set of encoders has its own folder in that one: a model of other modalities can share it, and so can one whose
    encoders keep their last norm (`late`).

    A run that only looks whether it can begin makes none, and is told whether there could be one.
    """
    folder = task.arguments.cache_features
    if folder is None:
        return None
    if task.training.check_only:
        make_features_model(model, encoded_modalities(model))
        return None
    own = Path(folder, hash_encoders(model))
    with task.training.main_process_first(desc="caching features"):
        cached, part = cache_features(model, splits, own, processor=processor, device=task.training.device)
    return part, cached


def train_new_parts(model: Any, names: Iterable[str]) -> None:
    """Let parts train that start from random weights; frozen, they let nothing through that can be learnt from."""
    for name in names:
        model.get_submodule(name).requires_grad_(True)

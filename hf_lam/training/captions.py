"""Captions as what a run learns: read from the data, made into labels, generated in evaluations, and written down."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import EvalPrediction, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.models.encoder_decoder.modeling_encoder_decoder import shift_tokens_right

from ..modeling.targets_hf_lam import encode_targets
from .arguments import ModelArguments, RunArguments
from .caption_metrics import caption_metrics
from .columns import (
    MOST_SHOWN,
    AnyDataset,
    check_column,
    columns_of,
    first_row,
    names_of_rows,
    stored_columns,
    values_of,
)
from .data import Data, load_splits
from .goals import Goal
from .label_lists import read_list
from .labels import has_labels
from .predictions import REFERENCES, logits_and_sources
from .recording import RecordingTrainer
from .sources import Sources

if TYPE_CHECKING:
    from .finetuning import Task

# The usual names of the column with the captions.
USUAL_COLUMNS = ("caption", "captions")
# Between the captions of a sample. They are in a batch, as `REFERENCES`, as the bytes of their text: so they stay with
# their sample, whatever order samples come in, and are no words that a tokenizer knows.
_SEPARATOR = "\0"
# What `Trainer` fills up rows with, and losses leave out.
_NOTHING = -100


@dataclass
class CaptionRunArguments(RunArguments, Seq2SeqTrainingArguments):
    """The options for training a model that writes captions, and for writing them in evaluations."""

    predict_with_generate: bool = field(
        default=True,
        metadata={
            "help": "Write captions in evaluations and score them against the references. With "
            "--no_predict_with_generate, only the loss is computed."
        },
    )
    generation_max_length: int | None = field(
        default=None,
        metadata={"help": "The maximum length of a written caption in tokens. Unless given, --max_caption_length."},
    )
    generation_num_beams: int | None = field(
        default=None,
        metadata={
            "aliases": ["--num_beams"],
            "help": "The number of beams of beam search. Unless given, the model's generation configuration decides.",
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("generation_max_length", "generation_num_beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}.")
        if not self.predict_with_generate:
            if self.do_predict:
                raise ValueError("--do_predict writes captions; leave out --no_predict_with_generate.")
            # Otherwise the logits of every word would be kept, of all samples.
            self.prediction_loss_only = True


# --- The column ------------------------------------------------------------------------------------------------------


def load_captions(data: Any, model: ModelArguments, training: CaptionRunArguments, checkpoint: Any = None) -> Data:
    """Load the splits that the run needs, with captions: texts, or lists of several for one sample.

    Args:
        data: options that say where the data come from, and as `caption_column_name` the column, which becomes that of
            the labels.
        model: options for downloads.
        training: options that say what the run does.
        checkpoint: not used.

    Raises:
        ImportError: without the packages that captions are compared with.
        ValueError: as from `load_splits`; if there is no such column, or samples without a caption, naming their rows.
    """
    if training.predict_with_generate:
        caption_metrics(["a"], ["a"])  # a package that is missing is to be known before training
    splits, sources, is_held_out = load_splits(data, model, training)
    if training.generation_max_length is None:
        training.generation_max_length = data.max_caption_length + 1  # and the start
    data.label_column_name = find_caption_column(splits, data.caption_column_name)
    check_captions(splits, data, sources)
    return Data(splits, sources, Captions(training.predict_with_generate), is_held_out)


def find_caption_column(splits: Mapping[str, AnyDataset], given: str | None) -> str:
    """The column that was named, or else one with a usual name; the split test may lack it.

    Raises:
        ValueError: if there is none, with the columns that there are.
    """
    needed = [dataset for split, dataset in splits.items() if split != "test"]
    first = (needed or [*splits.values()])[0]
    column = given or next((name for name in USUAL_COLUMNS if name in columns_of(first)), USUAL_COLUMNS[0])
    for dataset in needed:
        check_column(dataset, column, "caption_column_name")
    return column


def check_captions(splits: Mapping[str, AnyDataset], data: Any, sources: Mapping[str, Sources] | None = None) -> None:
    """Raises a `ValueError` that names the rows whose captions are none. Of a stream, the first row is looked at."""
    column = data.label_column_name
    found = []
    for split, dataset in splits.items():
        if not has_labels(split, dataset, data):
            continue
        values = values_of(dataset, column) if isinstance(dataset, Dataset) else [first_row(dataset)[column]]
        wrong = {row: reason for row, value in enumerate(values) if (reason := _reason_of(value)) is not None}
        if wrong:
            named = names_of_rows(dataset, list(wrong)[:MOST_SHOWN], (sources or {}).get(split))
            shown = [f"{name} {reason}" for name, reason in zip(named, wrong.values(), strict=False)]
            found.append(
                f"{len(wrong)} of {len(values)} samples of the split {split!r} have no caption in {column!r}: "
                f"{'; '.join(shown)}{'; …' if len(wrong) > MOST_SHOWN else ''}."
            )
    if found:
        raise ValueError(f"{' '.join(found)} A caption is a text, or a list of several.")


def read_captions(value: Any) -> list[str]:
    """The captions of one sample, of a text or a list of texts, also where that is written as text (`'["a", "b"]'`).

    Raises:
        ValueError: for any other value; the message describes it.
    """
    reason = _reason_of(value)
    if reason is not None:
        raise ValueError(f"it {reason} in place of a caption")
    return _texts(value)


def _texts(value: Any) -> list[str]:
    try:
        listed = read_list(value)
    except ValueError:  # a caption in brackets
        listed = value
    is_list = isinstance(listed, (list, tuple)) and all(isinstance(text, str) for text in listed)
    # A text such as "[1]" is no list of texts, and one such as "[]" is no caption.
    return list(listed) if is_list and (listed or not isinstance(value, str)) else [value]


def _reason_of(value: Any) -> str | None:
    """The reason why captions are refused; None if they are not."""
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas' empty field
        return "has nothing"
    texts = _texts(value)
    if not texts:
        return "has an empty list"
    for text in texts:
        if not isinstance(text, str):
            return f"has {type(text).__name__} {str(text)[:40]!r}"
        if not text.strip() or _SEPARATOR in text:
            return "has a text without a word" if not text.strip() else "has a text with a zero byte"
    return None


# --- Samples and batches ---------------------------------------------------------------------------------------------


def label_captions(
    splits: Mapping[str, AnyDataset], loaded: Mapping[str, AnyDataset], data: Any, encode: Callable[[str], list[int]]
) -> dict[str, AnyDataset]:
    """Give the samples of splits tokens as labels.

    In training, each of several captions of a sample makes a sample of its own. Elsewhere the loss is that of the
    first caption, and a generated caption is compared with all of them.

    Args:
        splits: splits that `prepare_media` made with a `Captions` for labels, or that `cache_features` made of those.
        loaded: rows of every split in the same order, after `limited`; those of streams are not needed.
        data: options that name the column.
        encode: function that makes labels of a caption.
    """
    made: dict[str, AnyDataset] = {}
    for split, dataset in splits.items():
        is_train = split == "train"
        if isinstance(dataset, IterableDataset):
            made[split] = _label_stream(dataset, is_train, encode)
        else:
            counts = [1] * len(dataset)
            if is_train:
                counts = [len(read_captions(value)) for value in values_of(loaded[split], data.label_column_name)]
            made[split] = _Labelled(dataset, counts, is_train, encode)
    return made


class _Labelled(torch.utils.data.Dataset):
    """Samples whose captions become labels, each as often as `counts` says."""

    def __init__(
        self, samples: Any, counts: Sequence[int], is_train: bool, encode: Callable[[str], list[int]]
    ) -> None:
        self.samples = samples
        self.places = [(row, caption) for row, count in enumerate(counts) for caption in range(count)]
        self.is_train = is_train
        self.encode = encode

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Read a batch at once for a `DataLoader`; from the table, this takes as long as reading one row."""
        places = [self.places[index] for index in indices]
        samples = self.samples.__getitems__([row for row, _ in places])
        return [
            _label(sample, caption, self.is_train, self.encode)
            for sample, (_, caption) in zip(samples, places, strict=True)
        ]


def _label_stream(dataset: IterableDataset, is_train: bool, encode: Callable[[str], list[int]]) -> IterableDataset:
    def of_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        made = [
            _label(row, caption, is_train, encode)
            for row in rows
            for caption in range(len(row.get("labels", ())) if is_train else 1)
        ]
        return {name: [row[name] for row in made] for name in made[0]} if made else {}

    return dataset.map(of_batch, batched=True, batch_size=16, remove_columns=stored_columns(dataset))


def _label(
    sample: Mapping[str, Any], caption: int, is_train: bool, encode: Callable[[str], list[int]]
) -> dict[str, Any]:
    labelled = dict(sample)
    captions = labelled.pop("labels", None)
    if captions is not None:
        labelled["labels"] = encode(captions[caption])
        if not is_train:
            labelled[REFERENCES] = list(_SEPARATOR.join(captions).encode())
    return labelled


def caption_encoder(tokenizer: Any, max_length: int) -> Callable[[str], list[int]]:
    """Return a function that makes labels of a caption: the tokens that a decoder learns to write, the end included.

    Args:
        tokenizer: tokenizer of the decoder.
        max_length: the most tokens, the end included.
    """

    def encode(caption: str) -> list[int]:
        (labels,) = encode_targets(tokenizer, [caption], {"max_length": max_length})
        return labels

    return encode


class CaptionCollator:
    """A data collator for samples with captions: it pads their labels, and makes of them what the decoder reads.

    Args:
        collator: collator for everything else, and for labels of several lengths, which are padded with -100.
        config: configuration of the model; it says which token a caption starts with, and what padding is.
    """

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]], config: Any) -> None:
        self.collator = collator
        self.pad, self.start = config.pad_token_id, config.decoder_start_token_id

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        inputs = [{name: value for name, value in sample.items() if name != REFERENCES} for sample in samples]
        batch = dict(self.collator(inputs))
        if "labels" in batch:
            # Not left to the model: what looks at its mechanisms, and what counts its cost, gives it no labels.
            batch["decoder_input_ids"] = shift_tokens_right(batch["labels"], self.pad, self.start)
        rows = [torch.tensor(sample[REFERENCES], dtype=torch.int32) for sample in samples if REFERENCES in sample]
        if rows:
            batch[REFERENCES] = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_NOTHING)
        return batch


def read_references(rows: Iterable[np.ndarray]) -> list[list[str]]:
    """The captions of each sample, of what `CaptionCollator` and `Trainer` made of them."""
    texts = [bytes(row[row != _NOTHING].astype(np.uint8)).decode() for row in rows]
    return [text.split(_SEPARATOR) for text in texts]


# --- Training and evaluation -----------------------------------------------------------------------------------------


class CaptioningTrainer(RecordingTrainer, Seq2SeqTrainer):
    """A `RecordingTrainer` that generates in evaluations, as `Seq2SeqTrainer` does.

    The labels that it hands to `compute_metrics` are the `REFERENCES` of the samples.
    """

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer`'s. `Seq2SeqTrainer` would count those samples twice that fill up the last batch of a process."""
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        references = inputs.pop(REFERENCES, None)
        loss, outputs, labels = super().prediction_step(model, inputs, *args, **kwargs)
        return loss, outputs, labels if references is None else self._prepare_input(references)


class Captions(Goal):
    """Captions, of which a sample may have several.

    is_generated: whether evaluations write captions; otherwise they compute the loss alone.
    tokenizer: tokenizer of the decoder, which has to be set before captions are read.
    """

    tokenizer: Any = None

    def __init__(self, is_generated: bool = True) -> None:
        self.is_generated = is_generated

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("bleu", "rougeL", "exact") if self.is_generated else ()

    def encode(self, value: Any) -> list[str]:
        """The captions of a row; see `read_captions`."""
        return read_captions(value)

    def measure(self, prediction: EvalPrediction) -> dict[str, float]:
        """[`caption_metrics`] of what was generated."""
        tokens = prediction.predictions
        written = self._decode(tokens[0] if isinstance(tokens, tuple) else tokens)
        return caption_metrics(written, read_references(np.asarray(prediction.label_ids)))

    def describe(self) -> str:
        return (
            "A sample has a caption, or several. What the model writes is compared with all of them: BLEU is from 0 "
            "to 100, ROUGE-L and exact match are from 0 to 1."
        )

    def write_predictions(self, folder: Path, predictions: Any, task: Task) -> None:
        """`predictions.csv`: of each sample its row in the split, its caption, and the file and the row in it."""
        tokens, sources = logits_and_sources(predictions)
        captions = self._decode(tokens)
        places = None if sources is None else task.sources["test"].places(sources, task.predicts_all)
        with Path(folder, "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "prediction", *(["file", "file_row"] if places is not None else [])])
            if places is None:
                writer.writerows(enumerate(captions))
            else:
                rows = zip(places, captions, strict=True)
                writer.writerows([place.row, caption, place.file, place.file_row] for place, caption in rows)

    def _decode(self, tokens: np.ndarray) -> list[str]:
        rows = [row[row != _NOTHING] for row in tokens]
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

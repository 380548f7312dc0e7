"""The command line of the fine-tuning scripts: what model, with which mechanisms, on what data."""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..mechanism_options import json_object, read_mechanisms
from ..modeling.mechanism_hf_lam import MechanismConfig
from ..modeling.mechanism_registry_hf_lam import mechanism_names
from .trainer import HfLamTrainingArguments

ModelT = TypeVar("ModelT", bound="ModelArguments")

# What a file of a data set may be, by its ending, and the builder of `datasets` that reads it.
FILE_BUILDERS = {"csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet"}

# Options of a model's configuration that the data decide.
_BY_THE_DATA = ("num_labels", "id2label", "label2id", "problem_type")

# How many samples of a stream are shuffled, unless it is said.
_SHUFFLED = 1000


@dataclass
class ModelArguments:
    """The options of the model, and what is done to it."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A Hub id or a folder, of a stock checkpoint or of a model that was converted before."},
    )
    mechanism: list[str] = field(
        default_factory=list,
        metadata={
            # Given twice, argparse would keep the last one and forget the first.
            "action": "extend",
            "help": f"The mechanisms to put into the attention: {', '.join(sorted(mechanism_names()))}, or one of "
            "your own as path/to/file.py or package.module:ConfigClass, which is imported. Several may be given, and "
            "the option may be repeated.",
        },
    )
    mechanism_config: str | None = field(
        default=None,
        metadata={
            "help": "Options of the mechanisms, as JSON or a JSON file. They are given by name, as in the hf_lam "
            'block of a saved config.json (\'{"lam": {"rank": 8}}\'); with a single mechanism, the name may be left '
            "out ('{\"rank\": 8}')."
        },
    )
    freeze_host: bool = field(
        default=False,
        metadata={"help": "Train only the mechanisms and the head; without mechanisms, only the head."},
    )
    from_scratch: bool = field(
        default=False,
        metadata={"help": "Start from random weights and take only the configuration from --model_name_or_path."},
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Changes to the model's configuration, as JSON or a JSON file: '{\"num_hidden_layers\": 4}'."
        },
    )
    processor_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Where the tokenizer or processor is loaded from, if it is not with the model."},
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Train LoRA adapters of this rank on queries and values (needs peft), and mechanisms and head "
            "in full. The adapters are merged into the saved model."
        },
    )
    teacher_model: str | None = field(
        default=None,
        metadata={
            "help": "A fine-tuned model of the same task. The model learns from its logits as well as from the "
            "labels, which helps where a conversion changes what the model computes. See --distillation_weight."
        },
    )
    annealing_end: float | None = field(
        default=None,
        metadata={
            "help": "The fraction of the training steps after which annealed views or synthetic maps have taken "
            "over completely. Unless given, the callbacks in hf_lam.training decide."
        },
    )
    harden: bool = field(
        default=False, metadata={"help": "Drop the queries and keys of an annealed mixture after training."}
    )
    control: bool = field(
        default=False,
        metadata={
            "help": "Train a control instead: no mechanisms, but feed-forward layers widened by as many parameters "
            "as the mechanisms would add."
        },
    )
    calibrate_views_on: str | None = field(
        default=None,
        metadata={
            "help": "A folder with a trained model of the same task. Each head gets the view that keeps most of "
            "this model's attention on the training data, within --views_budget."
        },
    )
    views_budget: float = field(
        default=0.5,
        metadata={"help": "The share of the attention FLOPs of full views that calibrated views may use, in (0, 1]."},
    )
    model_revision: str = field(
        default="main", metadata={"help": "The branch, tag or commit of the model on the Hub."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "The folder that keeps downloads."})
    token: str | None = field(
        default=None,
        metadata={"help": "The token for the Hub. Unless given, the one that `hf auth login` stored is used."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run Python code from the model's repository. Read it first."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Accept a checkpoint whose head has another number of classes, and give it a new head."},
    )

    def __post_init__(self) -> None:
        self.check_source()
        self._check_folders()
        self.mechanisms()
        decided = sorted(set(self.overrides()) & set(_BY_THE_DATA))
        if decided:
            raise ValueError(f"--config_overrides: {', '.join(decided)} is what the data decide; see --class_names.")
        if self.from_scratch and self.freeze_host:
            raise ValueError("--freeze_host would keep the random weights of --from_scratch; use one of them.")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"--lora_rank must be at least 1, got {self.lora_rank}; leave it out for no LoRA.")
        if self.lora_rank is not None and self.freeze_host:
            raise ValueError("--lora_rank adapts the host, which --freeze_host would keep as it is; use one of them.")
        self._check_control()
        if not 0 < self.views_budget <= 1:
            raise ValueError(f"--views_budget is a fraction in (0, 1], got {self.views_budget}.")
        if self.annealing_end is not None and not 0 < self.annealing_end <= 1:
            raise ValueError(f"--annealing_end is a fraction of the steps in (0, 1], got {self.annealing_end}.")

    def _check_control(self) -> None:
        """Raises a `ValueError` for what the control of a mechanism cannot be combined with."""
        if not self.control:
            return
        if not self.mechanism:
            raise ValueError("--control adds as many parameters as mechanisms would: name them with --mechanism.")
        # All of a feed-forward layer trains, or nothing of it: there is no way to train its new units alone.
        reasons = {
            "lora_rank": "LoRA keeps the feed-forward layers as they are",
            "freeze_host": "" if self.trains_layers() else "it keeps the feed-forward layers as they are",
            "harden": "there is no mixture to harden",
            "annealing_end": "there is nothing to anneal",
            "calibrate_views_on": "there are no views",
        }
        for option, reason in reasons.items():
            if reason and getattr(self, option) not in (None, False):
                raise ValueError(f"--control has no use for --{option}: {reason}. Leave one of them out.")

    def trains_layers(self) -> bool:
        """Whether the layers that mechanisms are put into train with --freeze_host, too."""
        return False

    def of_saved_model(self: ModelT, folder: str) -> ModelT:
        """The options for the model that a run with these options left in a folder, as it is."""
        hub = {"cache_dir": self.cache_dir, "token": self.token, "trust_remote_code": self.trust_remote_code}
        return type(self)(model_name_or_path=folder, **hub)  # type: ignore[arg-type]

    def check_source(self) -> None:
        """Raises a `ValueError` if it is not said which model."""
        if not self.model_name_or_path:
            raise ValueError("give --model_name_or_path: a Hub id or a folder.")

    def _check_folders(self) -> None:
        """Raises a `ValueError` for a path of no folder, which would be taken for a name on the Hub."""
        for option in fields(self):
            source = getattr(self, option.name)
            if source is None or not option.name.endswith(("_name_or_path", "_model", "_views_on", "_tokenizer")):
                continue
            path = os.path.expanduser(source)
            if looks_local(source) and not os.path.isdir(path):
                raise ValueError(f"--{option.name}: there is no folder {source!r}.")
            setattr(self, option.name, path)

    def mechanisms(self) -> list[MechanismConfig]:
        """The mechanisms' configurations, in the order they were named."""
        return read_mechanisms("--mechanism", self.mechanism, "--mechanism_config", self.mechanism_config)

    def count_positions(self, row: Mapping[str, Any]) -> int | None:
        """Count the labels of a row if each of its positions has one; None for a model without positions."""
        return None

    def overrides(self) -> dict[str, Any]:
        """The value of `--config_overrides`."""
        return json_object("--config_overrides", self.config_overrides)

    def hub_options(self, of_model: bool = True) -> dict[str, Any]:
        """Options of `from_pretrained` besides the name; the revision is for the repository of the model alone."""
        options = {"cache_dir": self.cache_dir, "token": self.token, "trust_remote_code": self.trust_remote_code}
        return {"revision": self.model_revision, **options} if of_model else options


@dataclass
class DataArguments:
    """The options of the data, from one of four places: the Hub, files, a folder, or a folder for each split."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of the data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "The branch, tag or commit of the data set."})
    train_file: str | None = field(
        default=None, metadata={"help": "The training data: a csv, tsv, json, jsonl or parquet file."}
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "The validation data, a file of the same kind."}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "The test data for --do_predict, a file of the same kind."}
    )
    delimiter: str | None = field(
        default=None,
        metadata={
            "help": "The character between the fields of csv and tsv files. Unless given, a comma for csv and a tab "
            "for tsv."
        },
    )
    encoding: str | None = field(
        default=None,
        metadata={"help": "The encoding of csv, tsv and json files, such as latin-1. Unless given, utf-8."},
    )
    train_dir: str | None = field(
        default=None,
        metadata={
            "help": "The training data: a folder of images, videos or audio, as CLASS/FILE, or FILE with a table "
            "metadata.csv."
        },
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "The validation data, a folder of the same form."}
    )
    test_dir: str | None = field(
        default=None,
        metadata={
            "help": "The test data for --do_predict, a folder of the same form. FILE alone is a sample without a "
            "label."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "A folder in the form of imagefolder or videofolder (train/CLASS/FILE), or with files named "
            "train, validation and test."
        },
    )
    streaming: bool = field(default=False, metadata={"help": "Read the data while training. This needs --max_steps."})
    shuffle_buffer_size: int = field(
        default=_SHUFFLED, metadata={"help": "The number of samples of a stream that are shuffled among each other."}
    )
    train_split_name: str = field(default="train", metadata={"help": "The split to train on."})
    validation_split_name: str = field(default="validation", metadata={"help": "The split to evaluate on."})
    test_split_name: str = field(default="test", metadata={"help": "The split to predict with --do_predict."})
    train_val_split: float = field(
        default=0.15,
        metadata={"help": "The share of the training data to evaluate on if there is no validation split."},
    )
    label_column_name: str = field(default="label", metadata={"help": "The column with the class or classes."})
    class_names: list[str] | None = field(
        default=None,
        metadata={
            "help": "The classes in order, if the data do not name them. Whole numbers in the data count from 0 in "
            "this list, unless the names are whole numbers themselves: --class_names 1 2 3 4 5."
        },
    )
    multi_hot: bool | None = field(
        default=None,
        metadata={
            "help": "Read lists of 0 and 1 as vectors with an entry for each class (true), or as numbers of classes "
            "(false). Needed only where both are possible."
        },
    )
    per_position: bool | None = field(
        default=None,
        metadata={
            "help": "Read lists of labels as one label for each vector of a sample, in order (true), or as the "
            "labels of the whole sample (false). Needed only where both are possible."
        },
    )
    do_regression: bool = field(
        default=False,
        metadata={
            "help": "Predict numbers: each label is a number or a list of numbers. The loss is the mean squared error."
        },
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={"help": "Train on at most this many samples, chosen by --seed; from a stream, the first ones."},
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Evaluate on at most this many samples, chosen by --seed; from a stream, the first ones."},
    )
    max_predict_samples: int | None = field(
        default=None, metadata={"help": "Predict only the first this many samples."}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "The number of processes that tokenize or check files."}
    )

    def files(self) -> dict[str, str]:
        """The files that were given, by split."""
        return _given(train=self.train_file, validation=self.validation_file, test=self.test_file)

    def folders(self) -> dict[str, str]:
        """The folders that were given, by split."""
        return _given(train=self.train_dir, validation=self.validation_dir, test=self.test_dir)

    def __post_init__(self) -> None:
        files, folders = self.files().values(), self.folders().values()
        sources = {
            "--dataset_name": self.dataset_name,
            "--train_file, --validation_file, --test_file": next(iter(files), None),
            "--data_dir": self.data_dir,
            "--train_dir, --validation_dir, --test_dir": next(iter(folders), None),
        }
        given = [name for name, value in sources.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"data come from one of {'; '.join(sources)}. Given: {'; '.join(given) or 'none'}.")
        for path in files:
            if not Path(path).is_file():
                raise ValueError(f"there is no file {path!r}.")
            if Path(path).suffix[1:] not in FILE_BUILDERS:
                raise ValueError(f"{path!r} must end in one of {', '.join(FILE_BUILDERS)}.")
        # A jsonl file is read as a json file; a tsv file has another separator than a csv file.
        suffixes = {Path(path).suffix[1:] for path in files}
        if len({FILE_BUILDERS[suffix] for suffix in suffixes}) > 1 or suffixes == {"csv", "tsv"}:
            raise ValueError(f"all files must be of one kind, got {', '.join(files)}.")
        for name in ("data_dir", "train_dir", "validation_dir", "test_dir"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_dir():
                raise ValueError(f"--{name} {path!r} is not a folder.")
        self._check_format(suffixes)
        for name in (
            "max_train_samples",
            "max_eval_samples",
            "max_predict_samples",
            "shuffle_buffer_size",
            "preprocessing_num_workers",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}.")
        if not 0 < self.train_val_split < 1:
            raise ValueError(f"--train_val_split is a share between 0 and 1, got {self.train_val_split}.")
        for name in ("dataset_config_name", "dataset_revision"):
            if getattr(self, name) is not None and self.dataset_name is None:
                raise ValueError(f"--{name} is for --dataset_name.")
        if self.shuffle_buffer_size != _SHUFFLED and not self.streaming:
            raise ValueError("--shuffle_buffer_size is for --streaming; otherwise all samples are shuffled.")
        if self.preprocessing_num_workers is not None and self.streaming:
            raise ValueError(
                "--preprocessing_num_workers is for data that are prepared before training, not for --streaming; see "
                "--dataloader_num_workers."
            )

    def _check_format(self, suffixes: set[str]) -> None:
        """Raises a `ValueError` for an encoding or a delimiter that the files have no use for."""
        if self.delimiter is not None:
            # A shell passes a tab as these two characters.
            self.delimiter = self.delimiter.replace("\\t", "\t")
            if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
                raise ValueError(f"--delimiter must be one character, got {self.delimiter!r}; a tab is '\\t'.")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError as error:
                raise ValueError(f"--encoding {self.encoding!r}: there is no such encoding.") from error
        for name, kinds in (("delimiter", {"csv", "tsv"}), ("encoding", {"csv", "tsv", "json", "jsonl"})):
            if getattr(self, name) is not None and (self.dataset_name is not None or suffixes - kinds):
                raise ValueError(f"--{name} is for {', '.join(sorted(kinds))} files.")


def _given(**paths: str | None) -> dict[str, str]:
    return {split: path for split, path in paths.items() if path is not None}


@dataclass
class MediaArguments(DataArguments):
    """The options of data whose files may turn out to be damaged."""

    skip_unreadable: bool = field(
        default=False,
        metadata={
            "help": "Read all images, videos and sounds before training, and leave out those that cannot be read. "
            "They are listed."
        },
    )
    max_checked_samples: int | None = field(
        default=None,
        metadata={
            "help": "Read this many samples of each split before training, evenly spread. Unless given, as many are "
            "read as fit into 1 GiB of memory, which keeps them; the files of the others are only checked for being "
            "missing, of an unknown kind or cut off. Any other damage ends the training when it reaches the file."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_checked_samples is not None and self.max_checked_samples < 1:
            raise ValueError(f"--max_checked_samples must be at least 1, got {self.max_checked_samples}.")
        if self.max_checked_samples is not None and self.skip_unreadable:
            raise ValueError(
                "--skip_unreadable must read all samples before training; leave out --max_checked_samples."
            )


@dataclass
class RunArguments(HfLamTrainingArguments):
    """The options of the training, and of what a run writes down."""

    check_only: bool = field(
        default=False,
        metadata={
            "help": "Do everything that comes before the first step, run the model once, write check.json into "
            "--output_dir, and stop."
        },
    )
    record_run: bool = field(
        default=False,
        metadata={
            "help": "Write run.json and batch.safetensors into --output_dir: the cost of the model, what it started "
            "from, and the order of the data. Repeating the same command with --do_predict then predicts the test "
            "data without training again."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("check_only", "record_run"):
            if getattr(self, name) and not self.do_train:
                raise ValueError(f"--{name} is for training; give --do_train.")


def looks_local(name: str) -> bool:
    """Whether a name is that of a folder, and cannot be one on the Hub."""
    return name.startswith((".", "~")) or os.path.isabs(name)

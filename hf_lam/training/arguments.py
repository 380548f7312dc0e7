"""The command line of the fine-tuning scripts: what model, with which mechanisms, on what data."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from transformers import HfArgumentParser

from ..mechanism_options import json_object, read_mechanisms
from ..modeling.mechanism_hf_lam import MechanismConfig
from ..modeling.mechanism_registry_hf_lam import mechanism_names
from .trainer import HfLamTrainingArguments

DataT = TypeVar("DataT", bound="DataArguments")
TrainingT = TypeVar("TrainingT", bound="RunArguments")
ModelT = TypeVar("ModelT", bound="ModelArguments")

# What a file of a data set may be, by its ending, and the builder of `datasets` that reads it.
FILE_BUILDERS = {"csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet"}

# What the data decide about the configuration of a model.
_BY_THE_DATA = ("num_labels", "id2label", "label2id", "problem_type")

# What is about a model that is trained.
_OF_TRAINING = (
    "from_scratch",
    "teacher_model",
    "lora_rank",
    "freeze_host",
    "harden",
    "annealing_end",
    "cache_features",
    "control",
    "calibrate_views_on",
)

# How many samples of a stream are shuffled, unless it is said.
_SHUFFLED = 1000


@dataclass
class ModelArguments:
    """Which model, and what is done to it."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A Hub id or a folder: a stock checkpoint, or one that was converted before."}
    )
    mechanism: list[str] = field(
        default_factory=list,
        metadata={
            # Given twice, argparse would keep the last one and forget the first.
            "action": "extend",
            "help": f"What the attention gets: {', '.join(sorted(mechanism_names()))}, or one of your own by "
            "where it is registered, path/to/file.py or package.module:ConfigClass, imported. May be repeated.",
        },
    )
    mechanism_config: str | None = field(
        default=None,
        metadata={
            "help": "Options of the mechanisms, as JSON or as a JSON file: by name, as a saved config.json has them "
            'under hf_lam (\'{"lam": {"rank": 8}}\'), or the bare options of the only mechanism (\'{"rank": 8}\').'
        },
    )
    freeze_host: bool = field(
        default=False,
        metadata={"help": "Train the mechanisms and the head alone; without mechanisms, the head alone."},
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Random weights; only the configuration is taken from --model_name_or_path."}
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Changes to the model's configuration, as JSON or a JSON file: '{\"num_hidden_layers\": 4}'."
        },
    )
    processor_name_or_path: str | None = field(
        default=None, metadata={"help": "Where the tokenizer or processor comes from, unless from the model."}
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "LoRA of this rank on the queries and values (needs peft); mechanisms and head train in full. The "
            "adapters are merged into the saved model."
        },
    )
    teacher_model: str | None = field(
        default=None,
        metadata={
            "help": "A fine-tuned model of the same task, whose logits are learnt from besides the labels; for "
            "conversions that change what the model computes. See --distillation_weight."
        },
    )
    annealing_end: float | None = field(
        default=None,
        metadata={
            "help": "The fraction of the steps by which views or synthetic maps that are annealed have taken over; "
            "default that of the callbacks in hf_lam.training."
        },
    )
    harden: bool = field(
        default=False, metadata={"help": "After training, drop the queries and keys of an annealed mixture."}
    )
    control: bool = field(
        default=False,
        metadata={
            "help": "In place of the mechanisms, feed-forward layers that are wider by as many parameters as these "
            "would add: what a mechanism is compared with."
        },
    )
    calibrate_views_on: str | None = field(
        default=None,
        metadata={
            "help": "A folder with a trained model of the same task: each head gets the view that keeps most of the "
            "attention of this model on the training data, within --views_budget."
        },
    )
    views_budget: float = field(
        default=0.5,
        metadata={"help": "What calibrated views may take of the attention FLOPs of full ones, in (0, 1]."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    token: str | None = field(
        default=None, metadata={"help": "For the Hub; default the one that `hf auth login` stored."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code from the repository of the model. Read it first."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Take a checkpoint whose head has another number of classes; it is made new."}
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
        """What uses the model that a run with these arguments left in a folder, as it is."""
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
        """How many labels a row has if each of its positions has one; None for a model without positions."""
        return None

    def overrides(self) -> dict[str, Any]:
        """What `--config_overrides` says."""
        return json_object("--config_overrides", self.config_overrides)

    def hub_options(self, of_model: bool = True) -> dict[str, Any]:
        """What `from_pretrained` gets besides the name; the revision is for the repository of the model alone."""
        options = {"cache_dir": self.cache_dir, "token": self.token, "trust_remote_code": self.trust_remote_code}
        return {"revision": self.model_revision, **options} if of_model else options


@dataclass
class DataArguments:
    """Which data, from one of four places: the Hub, files, a folder, or a folder for each split."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    train_file: str | None = field(default=None, metadata={"help": "A csv, tsv, json, jsonl or parquet file."})
    validation_file: str | None = field(default=None, metadata={"help": "Likewise."})
    test_file: str | None = field(default=None, metadata={"help": "Likewise, for --do_predict."})
    delimiter: str | None = field(
        default=None,
        metadata={"help": "What separates the fields of csv and tsv files: a comma and a tab, unless given."},
    )
    encoding: str | None = field(
        default=None, metadata={"help": "How csv, tsv and json files are written, such as latin-1; default utf-8."}
    )
    train_dir: str | None = field(
        default=None,
        metadata={"help": "A folder of images, videos or audio: CLASS/FILE, or FILE with a table metadata.csv."},
    )
    validation_dir: str | None = field(default=None, metadata={"help": "Likewise."})
    test_dir: str | None = field(
        default=None, metadata={"help": "Likewise, for --do_predict; FILE alone has no labels."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "A folder in the form of imagefolder or videofolder (train/CLASS/FILE), or with files named "
            "train, validation and test."
        },
    )
    streaming: bool = field(default=False, metadata={"help": "Read the data while training; needs --max_steps."})
    shuffle_buffer_size: int = field(
        default=_SHUFFLED, metadata={"help": "How many samples of a stream are shuffled among each other."}
    )
    train_split_name: str = field(default="train", metadata={"help": "Name of the split to train on."})
    validation_split_name: str = field(default="validation", metadata={"help": "Name of the split to evaluate on."})
    test_split_name: str = field(default="test", metadata={"help": "Name of the split for --do_predict."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training data to evaluate on where there is no such split."}
    )
    label_column_name: str = field(default="label", metadata={"help": "The column with the class or classes."})
    class_names: list[str] | None = field(
        default=None,
        metadata={
            "help": "The classes in order, where the data do not say; whole numbers count from 0 in it, unless the "
            "names are whole numbers themselves: --class_names 1 2 3 4 5."
        },
    )
    multi_hot: bool | None = field(
        default=None,
        metadata={
            "help": "Whether lists of 0 and 1 are vectors with an entry for each class, or numbers of classes; only "
            "where both can be meant."
        },
    )
    per_position: bool | None = field(
        default=None,
        metadata={
            "help": "Whether lists of labels have one for each vector of a sample, in their order, or are the labels "
            "of the sample; only where both can be meant."
        },
    )
    do_regression: bool = field(
        default=False,
        metadata={"help": "The labels are numbers that the model predicts, or lists of several; mean squared error."},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on so many samples, chosen by seed; of a stream the first."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many samples, likewise."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Predict the first so many samples."})
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenize, or check files."}
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
    """Which data, where files may turn out to be damaged."""

    skip_unreadable: bool = field(
        default=False,
        metadata={
            "help": "Read all images, videos and sounds before training; leave out and name those that cannot be read."
        },
    )
    max_checked_samples: int | None = field(
        default=None,
        metadata={
            "help": "Before training, read so many samples of each split, evenly spread. Unless it is given, as many "
            "are read as fit into 1 GiB of memory, and not read again; of the others, files that are missing, of an "
            "unknown kind or cut off are found as well. What is damaged otherwise ends the training that comes to it."
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
    """How a script trains, and what it writes down of that."""

    check_only: bool = field(
        default=False,
        metadata={
            "help": "Do all that comes before the first step, and run the model once; then write check.json into "
            "--output_dir and end."
        },
    )
    record_run: bool = field(
        default=False,
        metadata={
            "help": "Write run.json and batch.safetensors into --output_dir: what the model costs, what it started "
            "from, in which order it saw the data. The same command with --do_predict then predicts the test data "
            "without training again."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("check_only", "record_run"):
            if getattr(self, name) and not self.do_train:
                raise ValueError(f"--{name} is for training; give --do_train.")


def parse_arguments(
    model_class: type[ModelT],
    data_class: type[DataT],
    description: str,
    arguments: list[str] | None = None,
    training_class: type[TrainingT] = RunArguments,  # type: ignore[assignment]
) -> tuple[ModelT, DataT, TrainingT]:
    """The command line as dataclasses; a single argument that ends in .json or .yaml is a file with all of them.

    Raises:
        ValueError: for arguments that cannot work, before anything is loaded.
    """
    kinds: Any = (model_class, data_class, training_class)
    parser = HfArgumentParser(kinds, description=description.split("\n\n")[0])
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) == 1 and given[0].endswith((".json", ".yaml", ".yml")):
        given = _command_line(given[0])
    model, data, training, *others = parser.parse_args_into_dataclasses(
        given, return_remaining_strings=True, look_for_args_file=False
    )
    _refuse_unknown(others[-1], [f"--{option.name}" for kind in kinds for option in fields(kind) if option.init])
    _check_together(model, data, training)
    return model, data, training


def _refuse_unknown(given: list[str], known: list[str]) -> None:
    """Raises a `ValueError` for what is no option, with the nearest one there is."""
    for text in given:
        name = text.partition("=")[0]
        if name.startswith("--"):
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else " --help lists those there are."
            raise ValueError(f"there is no option {name}.{hint}")
    if given:
        raise ValueError(f"{given[0]!r} belongs to no option; a value with spaces needs quotes.")


def _check_together(model: ModelArguments, data: DataArguments, training: RunArguments) -> None:
    if not (training.do_train or training.do_eval or training.do_predict):
        raise ValueError("there is nothing to do: give --do_train, --do_eval or --do_predict.")
    wanted = {"train": training.do_train, "validation": training.do_eval, "test": training.do_predict}
    given = data.files() or data.folders()
    if given:
        kind = "file" if data.files() else "dir"
        # The validation data may be a part of the training data.
        for name in ("train", "test"):
            if wanted[name] and name not in given:
                raise ValueError(f"--do_{'predict' if name == 'test' else name} needs --{name}_{kind}.")
        if training.do_eval and not {"train", "validation"} & set(given):
            raise ValueError(f"--do_eval needs --validation_{kind}.")
    if data.streaming and training.do_train and training.max_steps <= 0:
        raise ValueError("--streaming data have no known length: say how long to train with --max_steps.")
    if model.harden and training.load_best_model_at_end:
        raise ValueError(
            "--harden is for the end of the annealing, and the model of --load_best_model_at_end may be from before "
            "it; use one of them."
        )
    # What is only tried may have a teacher that is still to be trained.
    if model.teacher_model is None and not training.check_only:
        for option in fields(training):
            if (
                option.name.startswith(("distillation_", "hidden_distillation_"))
                and getattr(training, option.name) != option.default
            ):
                raise ValueError(f"--{option.name} is for learning from a --teacher_model, which is not given.")
    if training.push_to_hub and not training.do_train:
        raise ValueError("--push_to_hub pushes what was trained; give --do_train.")
    if not training.do_train:
        if model.model_name_or_path is None:
            raise ValueError("a model that is put together here has to be trained first: give --do_train.")
        for name in _OF_TRAINING:
            if getattr(model, name, None) not in (None, False):
                raise ValueError(f"--{name} is for training; give --do_train.")


def _command_line(path: str) -> list[str]:
    """What a file of options would be on the command line, so that both are checked and converted alike."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        options = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the options in {path!r} cannot be read: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path!r} must hold an object with the options by name, got {type(options).__name__}.")
    line: list[str] = []
    for name, value in options.items():
        if isinstance(value, list) and value:
            line += [f"--{name}", *map(str, value)]
        elif value is not None and not isinstance(value, list):
            line.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return line


def looks_local(name: str) -> bool:
    """Whether a name is that of a folder, and cannot be one on the Hub."""
    return name.startswith((".", "~")) or os.path.isabs(name)

"""The command line of a fine-tuning script, read into dataclasses and checked as a whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from copy import copy
from dataclasses import fields, make_dataclass
from difflib import get_close_matches
from inspect import get_annotations
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml  # type: ignore[import-untyped]
from transformers import HfArgumentParser

from .arguments import DataArguments, ModelArguments, RunArguments

ModelT = TypeVar("ModelT", bound=ModelArguments)
DataT = TypeVar("DataT", bound=DataArguments)
TrainingT = TypeVar("TrainingT", bound=RunArguments)
ArgumentsT = TypeVar("ArgumentsT", bound=ModelArguments | DataArguments | RunArguments)

# The groups of --help in their order. An option that no table names is in the group of its class.
_MODEL, _MECHANISMS, _DATA, _LEARNING, _RUN = "model", "mechanisms", "data", "fine-tuning", "run"
_TRANSFORMERS = "options of transformers' TrainingArguments"
GROUPS = (_MODEL, _MECHANISMS, _DATA, _LEARNING, _RUN, _TRANSFORMERS)
_GROUP_OF = {
    **dict.fromkeys(
        ("mechanism", "mechanism_config", "control", "calibrate_views_on", "views_budget", "annealing_end", "harden"),
        _MECHANISMS,
    ),
    **dict.fromkeys(
        (
            "freeze_host",
            "lora_rank",
            "teacher_model",
            "mechanism_learning_rate",
            "distillation_weight",
            "distillation_temperature",
            "hidden_distillation_weight",
        ),
        _LEARNING,
    ),
}

# Options that make sense only for a model that is trained.
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


def parse_arguments(
    model_class: type[ModelT],
    data_class: type[DataT],
    description: str,
    arguments: list[str] | None = None,
    training_class: type[TrainingT] = RunArguments,  # type: ignore[assignment]
) -> tuple[ModelT, DataT, TrainingT]:
    """Read the command line into dataclasses. A single argument that ends in .json or .yaml is a file of options.

    Args:
        model_class: `ModelArguments` or a class that adds to them.
        data_class: `DataArguments` or a class that adds to them.
        description: docstring of the script; its first paragraph opens `--help`.
        arguments: arguments to read in place of `sys.argv[1:]`.
        training_class: `RunArguments` or a class that adds to them.

    Raises:
        ValueError: for arguments that cannot work, before anything is loaded.
    """
    kinds = (model_class, data_class, training_class)
    # The usage would name every option before the first of them is explained.
    parser = HfArgumentParser(
        help_groups(*kinds), description=description.split("\n\n")[0], usage="%(prog)s [--option value ...]"
    )
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) == 1 and given[0].endswith((".json", ".yaml", ".yml")):
        given = _command_line(given[0])
    *groups, unknown = parser.parse_args_into_dataclasses(
        given, return_remaining_strings=True, look_for_args_file=False
    )
    values = {name: value for group in groups for name, value in vars(group).items()}
    model, data, training = _make(model_class, values), _make(data_class, values), _make(training_class, values)
    _refuse_unknown(unknown, [f"--{name}" for name in values])
    _check_together(model, data, training)
    return model, data, training


def help_groups(model_class: type, data_class: type, training_class: type) -> list[Any]:
    """Sort the options of three dataclasses into one dataclass for each group of `--help`, in the order of `GROUPS`.

    `HfArgumentParser` gives a dataclass one group of options, by its `_argument_group_name`. Our classes do not follow
    the groups: a model's options are of several, and `RunArguments` adds ours to those of transformers.
    """
    # An option of transformers that a class of ours declares again, with help of our own, counts as ours.
    ours = {
        name
        for base in training_class.__mro__
        if base.__module__.partition(".")[0] != "transformers"
        for name in get_annotations(base)
    }
    options: dict[str, list[tuple[str, Any, Any]]] = {group: [] for group in GROUPS}
    for kind, default in ((model_class, _MODEL), (data_class, _DATA), (training_class, _RUN)):
        hints = get_type_hints(kind)
        for option in fields(kind):
            if option.init:
                is_ours = kind is not training_class or option.name in ours
                group = _GROUP_OF.get(option.name, default) if is_ours else _TRANSFORMERS
                # A dataclass writes into its fields, which stay those of `kind`.
                options[group].append((option.name, hints[option.name], copy(option)))
    return [
        make_dataclass("Group", members, namespace={"_argument_group_name": group})
        for group, members in options.items()
    ]


def _make(kind: type[ArgumentsT], values: Mapping[str, Any]) -> ArgumentsT:
    """Make a dataclass of those values that are options of its own."""
    return kind(**{option.name: values[option.name] for option in fields(kind) if option.init})


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
    # A run that is only tried may have a teacher that is still to be trained.
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
    """Turn a file of options into a command line, so that both are checked and converted alike."""
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

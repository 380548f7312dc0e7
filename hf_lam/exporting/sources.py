"""The model that is exported: loaded from a folder or the Hub, or as it is given."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, PreTrainedModel

from ..hub.buildable import saved_class_of
from ..hub.processors import UnavailableError, load_processor
from ..loading import loading


class Source(NamedTuple):
    """The model to export, and where it comes from.

    model: the model.
    processor: processor that prepares its inputs; None if there is none, or it cannot be loaded here.
    place: the folder or repository that it was loaded from; None if it was given.
    notes: notes for the user.
    """

    model: PreTrainedModel
    processor: Any
    place: str | None
    notes: tuple[str, ...] = ()


def load_source(place: str | os.PathLike[str], revision: str | None, dtype: str | None) -> Source:
    """The model and the processor in a folder or a repository; code in it is not run.

    Raises:
        LoadingError: if the Hub or the repository cannot be read.
        ValueError: if there is no model that can be read.
    """
    name = os.path.expanduser(os.fspath(place))
    options: dict[str, Any] = {key: value for key, value in (("revision", revision), ("dtype", dtype)) if value}
    of_config = {key: value for key, value in options.items() if key == "revision"}
    with loading(name, revision):
        if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
            raise ValueError(f"there is no model in the folder {name!r}: it has no config.json.")
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, **of_config)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the config.json of {name!r} cannot be read: {error}") from error
        model = saved_class_of(config).from_pretrained(name, **options)
        try:
            return Source(model, load_processor(name, model, revision), name)
        except UnavailableError as error:
            return Source(model, None, name, (f"the processor was copied as it is, and not tried: {error}",))


@contextmanager
def as_it_runs(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model on CPU and in evaluation mode; afterwards it is as it was."""
    if any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model).cpu()
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module in training:
            module.training = True

"""Attention views for a run, from where a trained model of the same task looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..injecting import inject
from ..locomt.calibration import calibrate_views
from ..locomt.views import set_views
from ..modeling.hosts_facts_hf_lam import is_fusion
from ..modeling.injection_hf_lam import encoders_with, injected_encoders, injection_of
from ..modeling.locomt_hf_lam import LocomtConfig
from .arguments import ModelArguments, RunArguments
from .columns import AnyDataset
from .feature_models import encoded_modalities, make_features_model
from .models import load_whole

logger = logging.get_logger(__name__)

# A few hundred samples are enough.
_SAMPLES = 512
# Where it is only looked whether a run could begin.
_TRIED = 8


def calibrate_for(
    model: PreTrainedModel,
    arguments: ModelArguments,
    auto_class: Any,
    dataset: AnyDataset,
    collator: Any,
    training: RunArguments,
) -> None:
    """Give a model the views that keep most of the attention of the trained model in `--calibrate_views_on`, in place.

    Args:
        model: model before training, with attention views in one encoder.
        arguments: name the trained model, and the budget.
        auto_class: Auto class that the trained model is loaded with.
        dataset: training samples, of which some are looked at, chosen by the seed; of a stream the first.
        collator: collator that makes batches of them.
        training: says how large these are.

    Raises:
        ValueError: if the model has no attention views, or views of its own; if the trained model is of another kind,
            or has other mechanisms; see `calibrate_views` for the rest.
    """
    encoders = encoders_with(model, LocomtConfig.name)
    if len(encoders) != 1:
        raise ValueError(
            f"--calibrate_views_on is for a model with attention views: give --mechanism {LocomtConfig.name}."
        )
    given = next(config for config in arguments.mechanisms() if isinstance(config, LocomtConfig))
    if given.views != LocomtConfig().views:
        raise ValueError(
            f"--calibrate_views_on chooses the views, and --mechanism_config has views={given.views!r}; leave one out."
        )
    config: LocomtConfig = injection_of(encoders[0]).configs[LocomtConfig.name]
    if config.bottleneck_tokens:
        raise ValueError(
            f"--calibrate_views_on chooses views without bottleneck_tokens={config.bottleneck_tokens}; leave one out."
        )
    trained = _load_trained(model, arguments, auto_class, config)
    batches = _batches(dataset, collator, training)
    found, report = calibrate_views(trained.to(training.device), batches, arguments.views_budget)
    logger.info(str(report))
    set_views(model, replace(found, annealing=config.annealing))


def _load_trained(model: Any, arguments: ModelArguments, auto_class: Any, config: LocomtConfig) -> Any:
    """The trained model, with full views over the segments of the model."""
    folder = str(arguments.calibrate_views_on)
    trained = load_whole(auto_class, folder, arguments, of_model=False, dtype=torch.float32)
    if is_fusion(model.config) != is_fusion(trained.config):
        raise ValueError(f"--calibrate_views_on {folder!r} is a {type(trained).__name__}, no {type(model).__name__}.")
    if is_fusion(model.config):
        if trained.config.modalities != model.config.modalities:
            raise ValueError(
                f"--calibrate_views_on {folder!r} has the modalities {trained.config.modalities}, the model "
                f"{model.config.modalities}."
            )
        cached = [name for name in encoded_modalities(trained) if name in (model.config.features or ())]
        if cached:
            unlimited = [name for name in cached if model.config.features[name]["max_length"] is None]
            trained = make_features_model(trained, cached, unlimited)
    full = replace(config, views=LocomtConfig().views, annealing=False)
    if encoders_with(trained, LocomtConfig.name):
        return set_views(trained, full)
    if injected_encoders(trained):
        raise ValueError(
            f"--calibrate_views_on {folder!r} has mechanisms without attention views; name a model without "
            "mechanisms, or with full views."
        )
    return inject(trained, full)


def _batches(dataset: Any, collator: Any, training: RunArguments) -> Iterator[Any]:
    number = _TRIED if training.check_only else _SAMPLES
    if hasattr(dataset, "__len__"):
        generator = torch.Generator().manual_seed(training.seed)
        rows = torch.randperm(len(dataset), generator=generator)[:number].tolist()
        samples: Iterator[Any] = (dataset[row] for row in rows)
    else:
        samples = islice(iter(dataset), number)
    while batch := list(islice(samples, training.per_device_eval_batch_size)):
        yield collator(batch)

"""The model and the processor of a run that trains a fusion model, and the columns that its modalities are in."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Audio, Image, Video
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
)

from ..injecting import inject
from ..modeling.configuration_hf_lam_fusion import HfLamFusionConfig
from ..modeling.injection_hf_lam import initialize_weights
from ..modeling.mechanism_registry_hf_lam import mechanism_block
from ..modeling.processing_hf_lam import PARTS, HfLamFusionProcessor
from .arguments import ModelArguments
from .columns import AnyDataset, check_column
from .data import find_column
from .frame_processors import FrameProcessor
from .fusion_arguments import FusionArguments, MultimodalArguments
from .labels import Labels
from .models import load_config, load_model, load_pretrained
from .vectors import VectorColumn
from .widening import widen_like

# Of every modality with an encoder: the feature of `datasets` and the usual names of its column, and what loads its
# part of a processor.
COLUMNS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "text": ((), ("sentence", "text", "caption")),
    "image": (Image, ("image", "img")),
    "video": (Video, ("video",)),
    "audio": (Audio, ("audio", "spectrogram")),
}
LOADERS: dict[str, Any] = {
    "text": AutoTokenizer,
    "image": AutoImageProcessor,
    "video": FrameProcessor,
    "audio": AutoFeatureExtractor,
}


# --- a new model -----------------------------------------------------------------------------------------------------


def make_fusion(
    head: Any, arguments: ModelArguments, encoders: Mapping[str, str], options: Mapping[str, Any], parts: Sequence[str]
) -> tuple[Any, list[str]]:
    """A model on encoders and vectors, with the mechanisms that were asked for, or with their control.

    Args:
        head: the class of the model.
        arguments: options that say what is done to the model, and how checkpoints are loaded.
        encoders: the checkpoints of those modalities that have an encoder.
        options: options of the configuration, those of vectors among them; and `baseline`, `own_layers`,
            `fusion_from`, and `decoder`, a model.
        parts: the children of the model around its fusion layers that start from random weights.

    Returns:
        The model, and the names of what in it starts from random weights although its encoders do not.
    """
    loaded = {name: _load_encoder(source, arguments) for name, source in encoders.items()}
    attached = None if arguments.control else arguments.mechanisms() or None
    options = {**options, "hf_lam": attached}
    if loaded or "decoder" in options:
        model = head.from_modality_pretrained(**loaded, **options, dtype=torch.float32)
        # For the model card.
        model.config.name_or_path = next(iter(encoders.values()), "")
    else:
        model = head(HfLamFusionConfig(**options))
    base = model.base_model
    names = [f"{name}_projection" for name in model.config.modalities]
    new = [name for name in names if isinstance(getattr(base, name), nn.Linear)]
    new += [f"{name}_{part}" for name in options.get("features") or () for part in ("model", "positions")]
    if options.get("fusion_from") is None and len(base.encoder.layers):
        new.append("encoder")
    new = [f"{model.base_model_prefix}.{name}" for name in new]
    _draw_apart(model, [*new, *parts])
    if arguments.control:
        model = widen_like(model, arguments.mechanisms())
    return model, new if loaded else [model.base_model_prefix]


def _load_encoder(source: str, arguments: ModelArguments) -> Any:
    if not arguments.from_scratch:
        return load_pretrained(AutoModel, source, arguments, of_model=False)
    config = load_pretrained(AutoConfig, source, arguments, of_model=False)
    return AutoModel.from_config(config, trust_remote_code=arguments.trust_remote_code)


def _draw_apart(model: Any, names: Sequence[str]) -> None:
    """Draw the first weights of some parts anew, each by the seed and its name.

    So it starts from the same weights under the same seed whatever other modalities and fusion layers a model has.
    """
    seed = torch.initial_seed()
    for name in names:
        for path, module in model.get_submodule(name).named_modules():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(f"{seed} {name} {path}".encode()))
                initialize_weights(model, module)


# --- a saved model ---------------------------------------------------------------------------------------------------


def load_fusion_config(arguments: ModelArguments, labels: Labels | None = None) -> Any:
    """The configuration of a saved fusion model, told about the classes.

    Raises:
        ValueError: if it is of another model, or has mechanisms already, and others were asked for.
    """
    config: Any = load_config(arguments, labels)
    if config.model_type != HfLamFusionConfig.model_type:
        raise ValueError(
            f"--model_name_or_path {arguments.model_name_or_path!r} is a {config.model_type}, no fusion model; "
            "name it as one of the encoders."
        )
    if arguments.mechanisms() and config.hf_lam is not None:
        raise ValueError(
            f"{arguments.model_name_or_path!r} has mechanisms already, "
            f"{', '.join(sorted(set(config.hf_lam) - {'version'}))}; leave out --mechanism."
        )
    return config


def load_saved_fusion(arguments: ModelArguments, auto_class: Any, config: Any, is_trained: bool) -> Any:
    """The model of a configuration from `load_fusion_config`, with the mechanisms asked for; see `load_model`."""

    # What `convert` is to stock models, `inject` is to a fusion model, which saves its mechanisms itself.
    def attach(model: Any, *configs: Any) -> Any:
        model.config.hf_lam = mechanism_block(configs)
        return inject(model, *configs)

    return load_model(arguments, auto_class, config, is_trained, attach)


# --- the processor ---------------------------------------------------------------------------------------------------


def load_fusion_processor(
    arguments: ModelArguments,
    config: Any,
    encoders: Mapping[str, str],
    *,
    scales: Mapping[str, Any] | None = None,
    resizing: Mapping[str, Any] | None = None,
    decoder_tokenizer: Any = None,
) -> Any:
    """Load the processor of the saved model, or make one from the parts that the encoders' folders have.

    Args:
        arguments: options that name it.
        config: configuration of the model.
        encoders: checkpoints of the encoders.
        scales: mean and standard deviation of the vectors of a new model, if they are standardised.
        resizing: options for the processor of images.
        decoder_tokenizer: tokenizer of what a new model writes.

    Raises:
        ValueError: if it lacks a part for one of the modalities.
    """
    source = arguments.processor_name_or_path or arguments.model_name_or_path
    if source is not None:
        processor: Any = load_pretrained(AutoProcessor, source, arguments)
    else:
        changes = {"image": resizing or {}}
        parts = {
            PARTS[name]: load_pretrained(LOADERS[name], path, arguments, of_model=False, **changes.get(name, {}))
            for name, path in encoders.items()
        }
        features = {
            name: {key: options[key] for key in ("size", "max_length", "positions")} | (scales or {}).get(name, {})
            for name, options in (config.features or {}).items()
        }
        written = {} if decoder_tokenizer is None else {"decoder_tokenizer": decoder_tokenizer}
        processor = HfLamFusionProcessor(**parts, features=features or None, **written)
    lacking = sorted(set(config.modalities) - set(getattr(processor, "modalities", ())))
    if lacking:
        raise ValueError(f"the processor of {source!r}, a {type(processor).__name__}, has no part for {lacking}.")
    return processor


# --- the columns -----------------------------------------------------------------------------------------------------


def find_columns(dataset: AnyDataset, data: MultimodalArguments, config: Any) -> dict[str, str]:
    """The column of every modality of the model that has an encoder."""
    modalities = [name for name in config.modalities if name not in (config.features or ())]
    given = {name: getattr(data, f"{name}_column_name") for name in COLUMNS}
    for name, column in given.items():
        if column is not None and name not in modalities:
            raise ValueError(
                f"--{name}_column_name {column!r}: the model has no {name}, only {', '.join(config.modalities)}."
            )
    return {name: find_column(dataset, given[name], f"{name}_column_name", *COLUMNS[name]) for name in modalities}


def find_vectors(dataset: AnyDataset, arguments: FusionArguments, config: Any) -> dict[str, VectorColumn]:
    """The column of every modality of the model that is vectors."""
    named = arguments.vector_columns()
    strange = sorted(set(named) - set(config.features or ()))
    if strange:
        raise ValueError(
            f"--features: the model has no vectors {', '.join(strange)}, only {', '.join(config.features or ())}."
        )
    found = {name: named.get(name, VectorColumn(name)) for name in config.features or ()}
    for source in found.values():
        for column in filter(None, (source.column, source.positions_column)):
            check_column(dataset, column, "features")
    return found

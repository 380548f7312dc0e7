"""Fusion models that go on where encoders stop: made of a whole model, and what they have learned brought back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..injecting import inject
from ..modeling.configuration_hf_lam_fusion import HfLamFusionConfig
from ..modeling.fusion_features_hf_lam import FeatureOptions
from ..modeling.hosts_facts_hf_lam import count_first_tokens
from ..modeling.injection_hf_lam import injected_encoders, injection_of, remove_mechanisms
from ..modeling.mechanism_registry_hf_lam import block_of, configs_in

# What of a configuration may differ between models with equal outputs: it is for training alone, or compared apart.
_FREE = {
    # Trainer writes those of the tokenizer into a configuration.
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "initializer_range",
    "features",
    "hf_lam",
}
# What says what the outputs of a head stand for.
_OF_LABELS = ("id2label", "label2id", "problem_type")


def make_features_model(model: Any, modalities: Sequence[str], unlimited: Collection[str] = ()) -> Any:
    """The same fusion model without the encoders of some modalities, which it takes as their outputs instead.

    Args:
        model: a fusion model, of any of its classes.
        modalities: names of those that have encoders; they are `features` of the new model.
        unlimited: those of them that may have more tokens than the encoder was made for, as large images have. Without
            a limit, dense masks cannot be put on the new model.

    Returns:
        A model of the same class on the same device, with copies of all other weights. A modality `NAME` takes
        `NAME_features`, `(B, L, width of its encoder)`, and goes through the same projection.

    Raises:
        TypeError: if `model` is no fusion model.
        ValueError: if it has weights that a new model of its class does not have, such as those of adapters; or if it
            labels the tokens of a modality, and not those that its encoder puts before them, which the new model
            could not tell.
    """
    check_fusion(model)
    _check_labelled(model, modalities)
    config = _config_without(model, modalities, _block_of(model))
    for name in unlimited:
        config.features[name]["max_length"] = None
    made = type(model)(config)
    own = {key: value.detach().clone() for key, value in _state_without(model, modalities).items()}
    _check_weights(own, made.state_dict(), type(model).__name__)
    # With their dtypes, which may be several.
    made.load_state_dict(own, assign=True)
    # A decoder may have its words for what it reads and for what it writes once.
    made.tie_weights()
    made.to(model.base_model.device)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(trained[name])
    return made.train(model.training)


def load_trained_fusion(full_model: Any, features_model: Any) -> Any:
    """Copy what a features model has learned into the model with the encoders that it was made of.

    The fusion layers, projections, mechanisms, head and the encoders that were not cached are copied, in place; so are
    the names of the classes. If the features model has other mechanisms, the full model gets those.

        model = HfLamFusionForSequenceClassification.from_modality_pretrained(text=…, image=…)
        dataset, features_model = cache_features(model, dataset, "cache", processor=processor)
        ...  # train features_model on the data set, and maybe save and load it
        load_trained_fusion(model, features_model).save_pretrained("model")

    Args:
        full_model: the model that `cache_features` was called with, or another with the same encoders.
        features_model: features model that `cache_features` returned, trained, or loaded from where it was saved.

    Returns:
        `full_model`, whose outputs are those of `features_model`.

    Raises:
        TypeError: if one of them is no fusion model. Adapters of PEFT are merged first, with `merge_and_unload`.
        ValueError: if they do not belong together: another head, options of the fusion layers that differ, weights of
            other names or shapes. The message names what differs; `full_model` is unchanged.
    """
    check_fusion(full_model)
    check_fusion(features_model)
    ours, theirs = full_model.config, features_model.config
    # By name: either may have been loaded with the code that lies beside its weights.
    if type(full_model).__name__ != type(features_model).__name__:
        raise ValueError(
            f"the features model is a {type(features_model).__name__} and the full one a {type(full_model).__name__}; "
            "both must be of one class."
        )
    cached = [name for name in theirs.features or () if name not in (ours.features or ())]
    absent = [name for name in cached if name not in ours.modalities]
    if absent:
        raise ValueError(
            f"the features model has {theirs.modalities}, and the full model no {', '.join(absent)}, only "
            f"{ours.modalities}."
        )
    block = _block_of(features_model)
    config = _config_without(full_model, cached, block)
    _check_options(config, theirs)
    with torch.device("meta"):
        expected = type(full_model)(config).state_dict()
    trained = features_model.state_dict()
    _check_weights(trained, expected, f"{type(full_model).__name__} without its encoders of {', '.join(cached)}")
    if block != _block_of(full_model):
        if _block_of(full_model) is not None:
            remove_mechanisms(full_model)
        ours.hf_lam = block
        if block is not None:
            inject(full_model, *configs_in(block).values())
    full_model.load_state_dict(trained, strict=False)
    for name in _OF_LABELS:
        setattr(ours, name, copy.deepcopy(getattr(theirs, name)))
    return full_model


def check_fusion(model: Any) -> None:
    """A `TypeError` for what is no fusion model."""
    # Not `isinstance` of ours: it may have been loaded with the code that lies beside its weights.
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, PreTrainedModel) or kind != HfLamFusionConfig.model_type:
        hint = " Merge its adapters first: model.merge_and_unload()." if hasattr(model, "merge_and_unload") else ""
        raise TypeError(f"a fusion model is needed, such as HfLamFusionModel, got {type(model).__name__}.{hint}")


def encoded_modalities(model: Any) -> list[str]:
    """The modalities of a fusion model that have encoders."""
    return [name for name in model.config.modalities if name not in (model.config.features or ())]


def _check_labelled(model: Any, modalities: Sequence[str]) -> None:
    base = model.base_model
    labelled = [name for name in getattr(model, "label_modalities", ()) if name in modalities and name != "text"]
    for name in labelled:
        first = count_first_tokens(base.modality_model(name))
        if first != base.class_tokens[name]:
            raise ValueError(
                f"the places of the {name} are labelled, and its encoder puts {first} tokens before them, "
                f"{base.class_tokens[name]} of them for classes. Leave {name} out of modalities=."
            )


def _block_of(model: Any) -> dict[str, Any] | None:
    """The mechanisms that a model has, whatever its configuration says."""
    found = [encoder for encoder in injected_encoders(model) if encoder is model.base_model]
    return block_of(injection_of(found[0]).configs) if found else None


def _config_without(model: Any, modalities: Sequence[str], block: dict[str, Any] | None) -> Any:
    config = copy.deepcopy(model.config)
    features = dict(config.features or {})
    for name in modalities:
        setattr(config, f"{name}_config", None)
        features[name] = dataclasses.asdict(_options_of(model.base_model, name))
    config.features = features
    config.hf_lam = block
    if hasattr(model, "label_modalities"):
        # What None stands for is another thing where there are more features.
        config.label_modalities = list(model.label_modalities)
    return config


def _options_of(base: Any, name: str) -> FeatureOptions:
    """A modality that takes what its encoder gives."""
    projection = getattr(base, f"{name}_projection")
    is_projected = not isinstance(projection, nn.Identity)
    return FeatureOptions(
        size=projection.in_features if is_projected else base.config.hidden_size,
        max_length=base.max_lengths[base.config.modalities.index(name)],
        norm=False,
        project=is_projected,
        positions=None,
        class_tokens=base.class_tokens[name],
    )


def _state_without(model: Any, modalities: Sequence[str]) -> dict[str, torch.Tensor]:
    """The weights of a model but for the encoders of some modalities."""
    encoders = {id(model.base_model.modality_model(name)) for name in modalities}
    prefixes = tuple(f"{path}." for path, module in model.named_modules() if id(module) in encoders)
    return {key: value for key, value in model.state_dict().items() if not key.startswith(prefixes)}


def _check_options(ours: Any, theirs: Any) -> None:
    """Whether two configurations of one class are of models that compute the same."""
    own = {field.name for field in dataclasses.fields(type(ours))}
    own -= {field.name for field in dataclasses.fields(PreTrainedConfig)} | _FREE
    pairs = {name: (getattr(ours, name), getattr(theirs, name, None)) for name in own if not name.endswith("_config")}
    for name in ours.features:
        for option in dataclasses.fields(FeatureOptions):
            # The shapes of the weights show how long sequences may be, as far as that matters.
            if option.name not in ("dropout", "max_length"):
                pair = (ours.features[name][option.name], (theirs.features or {}).get(name, {}).get(option.name))
                pairs[f"{option.name} of {name}"] = pair
    for name, (wanted, found) in sorted(pairs.items()):
        if wanted != found:
            raise ValueError(
                f"the features model was made of another model than the full one: its {name} is {found!r}, and the "
                f"full one's {wanted!r}."
            )


def _check_weights(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], of: str) -> None:
    """A `ValueError` for weights of other names or shapes than those that a model of this kind has."""
    extra, lacking = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
    if extra:
        raise ValueError(
            f"the model has {len(extra)} weights, such as {extra[0]}, that {of} does not have. Merge adapters first, "
            "and undo what else was put into the model."
        )
    if lacking:
        raise ValueError(f"the model does not have {len(lacking)} weights of {of}, such as {lacking[0]}.")
    for key, tensor in found.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(
                f"the weight {key} has the shape {tuple(tensor.shape)}, and that of {of} {tuple(expected[key].shape)}."
            )

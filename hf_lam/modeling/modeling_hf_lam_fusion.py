# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""One model from several modalities: text, image, video, audio and vectors in one sequence, with mechanisms on it.

Source of the idea: Nagrani et al., "Attention Bottlenecks for Multimodal Fusion" (MBT), arXiv 2107.00135, for encoders
that run apart before their layers meet; Park & Choi (LoCoMT), arXiv 2402.15096, and Barrios & Jin (LAM), arXiv
2406.02761, for what the fusion layers can do.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .configuration_hf_lam_fusion import HfLamFusionConfig
from .fusion_checkpoints_hf_lam import check_layers, check_sizes, copy_layers, read_layer_options
from .fusion_decoders_hf_lam import copy_decoder, load_decoder, read_decoder
from .fusion_encoders_hf_lam import explain_encoder
from .fusion_generation_hf_lam import FusionForConditionalGeneration
from .fusion_heads_hf_lam import (
    FusionForEmbedding,
    FusionForSequenceClassification,
    FusionForTokenClassification,
    HfLamFusionEmbeddingOutput,
)
from .fusion_model_hf_lam import FusionModel, FusionPreTrainedModel, HfLamFusionModelOutput
from .fusion_moments_hf_lam import FusionForMomentRetrieval, HfLamFusionMomentOutput
from .fusion_sources_hf_lam import (
    check_config_options,
    copy_encoder,
    cut_config,
    load_encoder,
    plan_encoder,
    read_source,
)
from .modeling_hf_lam import HfLamMixin, TokenLossMixin

__all__ = [
    "HfLamFusionEmbeddingOutput",
    "HfLamFusionForConditionalGeneration",
    "HfLamFusionForEmbedding",
    "HfLamFusionForMomentRetrieval",
    "HfLamFusionForSequenceClassification",
    "HfLamFusionForTokenClassification",
    "HfLamFusionModel",
    "HfLamFusionModelOutput",
    "HfLamFusionMomentOutput",
]

logger = logging.get_logger(__name__)


class HfLamFusionMixin(HfLamMixin, FusionPreTrainedModel):
    """The common part of the public classes: mechanisms, and making a model from one checkpoint per modality."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as the other classes do; a `ValueError` if the layers of a modality's encoder were cut."""
        base: Any = self.base_model
        for name, made in base.made_layers.items():
            problem = explain_encoder(name, base.modality_model(name), made)
            if problem is not None:
                raise ValueError(problem)
        super().save_pretrained(save_directory, *args, **kwargs)

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        if not isinstance(self, FusionForConditionalGeneration):
            # The masks of a folder's decoder are no mechanisms of what has none.
            loading_info.unexpected_keys -= {
                name for name in loading_info.unexpected_keys if name.startswith("decoder.") and ".hf_lam." in name
            }

    @classmethod
    def from_modality_pretrained(
        cls,
        text: PreTrainedModel | str | os.PathLike[str] | None = None,
        image: PreTrainedModel | str | os.PathLike[str] | None = None,
        video: PreTrainedModel | str | os.PathLike[str] | None = None,
        audio: PreTrainedModel | str | os.PathLike[str] | None = None,
        *,
        own_layers: Mapping[str, int] | None = None,
        fusion_from: str | None = None,
        decoder: Any = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Any:
        """Make a fusion model from one checkpoint for each modality, as `VisionTextDualEncoderModel` does for two.

        Args:
            text: checkpoint of the text: a Hub id, a folder, or a loaded model, whose weights are copied. A task model
                gives its encoder, as does a model with a decoder (Whisper) or with an encoder for each modality
                (CLIP), and a folder of sentence-transformers its transformer. Likewise for the other modalities.
            image: checkpoint of the images.
            video: checkpoint of the videos.
            audio: checkpoint of the audio.
            own_layers: number of layers that a modality keeps to itself, by its name; all unless given. The layers
                above are dropped. An encoder whose layers cannot be cut is used whole.
            fusion_from: the modality whose checkpoint the fusion layers start from: from its last layers (and the last
                norm, where it has one), as many as there are fusion layers. Their sizes, activation, dropouts and
                order of norms are then the checkpoint's. Random weights unless given. A ViT or BERT whose upper layers
                became the fusion layers, with `own_layers` the rest, gives the same outputs as before on its own.
            decoder: decoder of a model that writes text: a Hub id, a folder, or a loaded model, whose weights are
                copied; or a configuration, for random weights. It may lack cross-attention, which then starts from
                random weights, as that of GPT-2 or BERT does.
            dtype: dtype of the model; that of the checkpoints unless given, which must then have the same.
            **kwargs: options of `HfLamFusionConfig` (`num_hidden_layers`, `features`, `hf_lam`, `baseline`,
                `num_labels`, …).
                With the name of a modality in front, what `from_pretrained` gets for that one: `text_revision`, for
                example; or with `decoder_`.

        Returns:
            The model, in evaluation mode and on the device of the first modality's. What starts from random weights is
            logged, and layers of the checkpoint behind `fusion_from` that have no place.

        Raises:
            TypeError: if a modality is neither a model nor a name, or for an option that is not one.
            ValueError: for a modality or a decoder that does not fit, or layers that it does not have; if the layers
                of `fusion_from` compute something else than fusion layers: with causal attention or rotary positions,
                for example.
        """
        given = {"text": text, "image": image, "video": video, "audio": audio}
        options: dict[str, dict[str, Any]] = {}
        for name, source in given.items():
            prefix = f"{name}_"
            options[name] = {key.removeprefix(prefix): kwargs.pop(key) for key in [*kwargs] if key.startswith(prefix)}
            if source is None and options[name]:
                raise ValueError(f"options {sorted(options[name])} were given for {name}, but no {name} checkpoint.")
        if (decoder is None) == issubclass(cls, FusionForConditionalGeneration):
            raise ValueError(
                f"{cls.__name__} needs a decoder, such as decoder='gpt2'."
                if decoder is None
                else f"{cls.__name__} has no decoder; HfLamFusionForConditionalGeneration has one."
            )
        own = {field.name for field in dataclasses.fields(cls.config_class)}
        of_decoder = [key for key in kwargs if key.startswith("decoder_") and key not in own]
        decoder_options = {key.removeprefix("decoder_"): kwargs.pop(key) for key in of_decoder}
        check_config_options(cls.config_class, kwargs)
        if fusion_from is not None and given.get(fusion_from) is None:
            names = [name for name, source in given.items() if source is not None]
            raise ValueError(f"fusion_from={fusion_from!r} must be one of the given modalities, {names}.")
        # All that can be refused is, before weights are read.
        sources = {
            name: read_source(name, source, options[name]) for name, source in given.items() if source is not None
        }
        configs = {name: source.config for name, source in sources.items()}
        planned = {name: plan_encoder(name, encoder_config) for name, encoder_config in configs.items()}
        layers = {name: encoder_config.num_hidden_layers for name, encoder_config in configs.items()}
        for name, wanted in (own_layers or {}).items():
            if name not in sources:
                raise ValueError(
                    f"own_layers[{name!r}]={wanted!r} is about the {name} checkpoint, which was not given."
                )
            cut_config(name, planned[name], configs[name], wanted)
        defaults = {} if fusion_from is None else read_layer_options(fusion_from, planned[fusion_from])
        decoder_source = None if decoder is None else read_decoder(decoder, decoder_options)
        if decoder_source is not None:
            kwargs["decoder"] = decoder_source.config
        by_name = {f"{name}_config": encoder_config for name, encoder_config in configs.items()}
        config = cls.config_class(**by_name, **{**defaults, **kwargs})
        if fusion_from is not None:
            check_sizes(fusion_from, planned[fusion_from], config)
        encoders, random = {}, {}
        for name in sources:
            encoders[name], random[name] = load_encoder(name, sources[name])
        loaded = None if decoder_source is None else load_decoder(decoder_source)
        models = {**encoders, **({} if loaded is None else {"decoder": loaded.model})}
        dtypes = {name: part.dtype for name, part in models.items()}
        if dtype is None and len(set(dtypes.values())) > 1:
            raise ValueError(f"the checkpoints have different dtypes, {dtypes}; choose one with dtype=.")
        if fusion_from is not None:
            # The options of the checkpoint's own layers, whatever else was asked for.
            like_source = {**defaults, "num_hidden_layers": config.num_hidden_layers}
            check_layers(fusion_from, encoders[fusion_from], cls.config_class(**by_name, **like_source))
        model: Any = cls(config)
        base = model.base_model
        for name, encoder in encoders.items():
            copy_encoder(name, encoder, base.modality_model(name), random[name])
        if fusion_from is not None:
            copy_layers(fusion_from, encoders[fusion_from], base.encoder)
        unread = [] if loaded is None else copy_decoder(loaded, model.decoder)
        first = next(iter(models.values()), model)
        model.to(device=first.device, dtype=first.dtype if dtype is None else dtype).eval()
        if fusion_from is not None:
            has, own = layers[fusion_from], configs[fusion_from].num_hidden_layers
            if own + config.num_hidden_layers != has:
                logger.warning(
                    f"of the {has} layers of the {fusion_from} checkpoint, the first {own} are its own and the last "
                    f"{config.num_hidden_layers} start the fusion layers. Only if they add up, the fusion layers go "
                    "on where it stops."
                )
        projections = [f"{name}_projection" for name in config.modalities]
        fresh = [path for path in projections if isinstance(base.get_submodule(path), nn.Linear)]
        fresh += ["encoder"] if fusion_from is None and config.num_hidden_layers else []
        if base is not model:
            heads = {name: child for name, child in model.named_children() if child is not base}
            if loaded is not None:
                del heads["decoder"]
                fresh += [f"{len(unread)} weights of the decoder (such as {unread[0]})"] if unread else []
            fresh += [name for name, child in heads.items() if next(child.parameters(), None) is not None]
        if fresh:
            logger.warning(
                f"{', '.join(fresh)} of {cls.__name__} start from random weights. Train the model on a task before "
                "using it."
            )
        return model


class HfLamFusionModel(HfLamFusionMixin, FusionModel):
    config_class = HfLamFusionConfig


class HfLamFusionForSequenceClassification(HfLamFusionMixin, FusionForSequenceClassification):
    config_class = HfLamFusionConfig


class HfLamFusionForTokenClassification(HfLamFusionMixin, TokenLossMixin, FusionForTokenClassification):
    config_class = HfLamFusionConfig


class HfLamFusionForEmbedding(HfLamFusionMixin, FusionForEmbedding):
    config_class = HfLamFusionConfig


class HfLamFusionForMomentRetrieval(HfLamFusionMixin, FusionForMomentRetrieval):
    config_class = HfLamFusionConfig


class HfLamFusionForConditionalGeneration(HfLamFusionMixin, TokenLossMixin, FusionForConditionalGeneration):
    config_class = HfLamFusionConfig

# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""One model from several modalities: text, image, video, audio and vectors in one sequence, with mechanisms on it.

Source of the idea: Nagrani et al., "Attention Bottlenecks for Multimodal Fusion" (MBT), arXiv 2107.00135, for encoders
that run apart before their layers meet; Park & Choi (LoCoMT), arXiv 2402.15096, and Barrios & Jin (LAM), arXiv
2406.02761, for what the fusion layers can do.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .configuration_hf_lam_fusion import HfLamFusionConfig, encoder_config_of
from .fusion_checkpoints_hf_lam import (
    check_config_options,
    check_layers,
    copy_encoder,
    copy_layers,
    load_source,
    read_layer_options,
)
from .fusion_encoders_hf_lam import explain_encoder
from .fusion_heads_hf_lam import FusionForSequenceClassification
from .fusion_model_hf_lam import FusionModel, FusionPreTrainedModel, HfLamFusionModelOutput
from .modeling_hf_lam import HfLamMixin

__all__ = ["HfLamFusionForSequenceClassification", "HfLamFusionModel", "HfLamFusionModelOutput"]

logger = logging.get_logger(__name__)


class HfLamFusionMixin(HfLamMixin, FusionPreTrainedModel):
    """What the two public classes share: mechanisms, and the way from one checkpoint per modality."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As for the other classes; also a `ValueError` if the layers of a modality's encoder were cut."""
        base: Any = self.base_model
        for name, made in base.made_layers.items():
            problem = explain_encoder(name, base.modality_model(name), made)
            if problem is not None:
                raise ValueError(problem)
        super().save_pretrained(save_directory, *args, **kwargs)

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
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Any:
        """A fusion model from one checkpoint for each modality, like `VisionTextDualEncoderModel` for two.

        Args:
            text: a Hub id, a folder, or a loaded model, whose weights are copied; a task model gives its encoder.
                Likewise for the other modalities.
            image: of the images.
            video: of the videos.
            audio: of the audio.
            own_layers: how many of its layers a modality keeps to itself, by its name; all unless given. The layers
                above are dropped.
            fusion_from: the modality whose checkpoint the fusion layers start from: from its last layers (and the last
                norm, where it has one), as many as there are fusion layers. Their sizes, activation, dropouts and
                order of norms are then the checkpoint's. Random weights unless given. A ViT or BERT whose upper layers
                became the fusion layers, with `own_layers` the rest, gives the same outputs as before on its own.
            dtype: of the model; that of the checkpoints unless given, which then must have the same.
            **kwargs: options of `HfLamFusionConfig` (`num_hidden_layers`, `hf_lam`, `baseline`, `num_labels`, …).
                With the name of a modality in front, what `from_pretrained` gets for that one: `text_revision`, for
                example.

        Returns:
            The model, in evaluation mode and on the device of the first modality's. What starts from random weights is
            logged, and layers of the checkpoint behind `fusion_from` that have no place.

        Raises:
            TypeError: if a modality is neither a model nor a name, or for an option that is not one.
            ValueError: for a modality that does not fit, or layers that it does not have; if the layers of
                `fusion_from` compute something else than fusion layers: with causal attention or rotary positions,
                for example.
        """
        given = {"text": text, "image": image, "video": video, "audio": audio}
        options: dict[str, dict[str, Any]] = {}
        for name, source in given.items():
            prefix = f"{name}_"
            options[name] = {key.removeprefix(prefix): kwargs.pop(key) for key in [*kwargs] if key.startswith(prefix)}
            if source is None and options[name]:
                raise ValueError(f"options {sorted(options[name])} were given for {name}, but no {name} checkpoint.")
        check_config_options(cls.config_class, kwargs)
        sources = {
            name: load_source(name, source, options[name]) for name, source in given.items() if source is not None
        }
        configs = {name: encoder_config_of(name, source.config) for name, source in sources.items()}
        dtypes = {name: source.dtype for name, source in sources.items()}
        if dtype is None and len(set(dtypes.values())) > 1:
            raise ValueError(f"the checkpoints have different dtypes, {dtypes}; choose one with dtype=.")
        own_layers = dict(own_layers or {})
        for name, wanted in own_layers.items():
            has = sources[name].config.num_hidden_layers if name in sources else None
            if has is None or isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 <= wanted <= has:
                raise ValueError(
                    f"own_layers[{name!r}]={wanted!r} must be a number of layers that the {name} checkpoint has"
                    + (", which was not given." if has is None else f", from 0 to {has}.")
                )
        if fusion_from is not None and fusion_from not in sources:
            raise ValueError(f"fusion_from={fusion_from!r} must be one of the given modalities, {list(sources)}.")
        for name, encoder_config in configs.items():
            encoder_config.num_hidden_layers = own_layers.get(name, encoder_config.num_hidden_layers)
        defaults = {} if fusion_from is None else read_layer_options(fusion_from, sources[fusion_from])
        by_name = {f"{name}_config": encoder_config for name, encoder_config in configs.items()}
        config = cls.config_class(**by_name, **{**defaults, **kwargs})
        if fusion_from is not None:
            # What the checkpoint's own layers are, whatever else was asked for.
            like_source = {**defaults, "num_hidden_layers": config.num_hidden_layers}
            check_layers(fusion_from, sources[fusion_from], cls.config_class(**by_name, **like_source))
        model: Any = cls(config)
        base = model.base_model
        for name, source in sources.items():
            copy_encoder(name, source, base.modality_model(name))
        if fusion_from is not None:
            copy_layers(fusion_from, sources[fusion_from], base.encoder)
        first = next(iter(sources.values()))
        model.to(device=first.device, dtype=first.dtype if dtype is None else dtype).eval()
        if fusion_from is not None:
            has, own = sources[fusion_from].config.num_hidden_layers, configs[fusion_from].num_hidden_layers
            if own + config.num_hidden_layers != has:
                logger.warning(
                    f"of the {has} layers of the {fusion_from} checkpoint, the first {own} are its own and the last "
                    f"{config.num_hidden_layers} start the fusion layers. Only if they add up, the fusion layers go "
                    "on where it stops."
                )
        projections = [f"{name}_projection" for name in config.modalities]
        fresh = [path for path in projections if isinstance(base.get_submodule(path), nn.Linear)]
        fresh += ["encoder"] if fusion_from is None and config.num_hidden_layers else []
        fresh += ["classifier"] if base is not model else []
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

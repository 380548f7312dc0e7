# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""One model from several encoders: text, image, video and audio in one sequence, with attention mechanisms on it.

Source of the idea: Nagrani et al., "Attention Bottlenecks for Multimodal Fusion" (MBT), arXiv 2107.00135, for encoders
that run apart before their layers meet; Park & Choi (LoCoMT), arXiv 2402.15096, and Barrios & Jin (LAM), arXiv
2406.02761, for what the fusion layers can do.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention_pass_hf_lam import MODALITY_TOKENS
from .configuration_hf_lam_fusion import INPUT_NAMES, MODALITIES, HfLamFusionConfig, encoder_config_of
from .fusion_encoders_hf_lam import (
    check_config_options,
    check_layers,
    copy_encoder,
    copy_layers,
    count_layers,
    explain_encoder,
    load_source,
    make_encoder,
    read_layer_options,
)
from .fusion_inputs_hf_lam import check_inputs, check_options, check_presence
from .fusion_layers_hf_lam import FusionEncoder, FusionLayer, FusionSelfAttention
from .hosts_facts_hf_lam import count_class_tokens, read_input_shape
from .hosts_hf_lam import ModalityTokens, max_length_of
from .modeling_hf_lam import HfLamMixin

logger = logging.get_logger(__name__)


@dataclasses.dataclass
class HfLamFusionModelOutput(BaseModelOutputWithPooling):
    """What a fusion model returns.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, tokens, hidden_size)`):
            The tokens of all modalities of the batch, one modality after the other.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, hidden_size)`, or `modalities * hidden_size`):
            What the modalities pool, combined.
        hidden_states (`tuple(torch.FloatTensor)`, with `output_hidden_states=True`):
            The input of the first fusion layer and the output of every one, with the tokens of a bottleneck at their
            end, if there is one; the encoders' own layers are not in it.
        attentions (`tuple(torch.FloatTensor)`, with `output_attentions=True`):
            The attention maps of the fusion layers, `(batch_size, num_heads, tokens, tokens)`.
        token_mask (`torch.LongTensor` of shape `(batch_size, tokens)`):
            1 for the tokens that count: those that are not padding, of modalities that the sample has.
        modality_ids (`torch.LongTensor` of shape `(tokens,)`):
            The modality of each token, as an index of `config.modalities`.
    """

    token_mask: torch.Tensor | None = None
    modality_ids: torch.Tensor | None = None


class Stream(NamedTuple):
    """One modality of a batch.

    hidden_states: its tokens, `(B, L, d)`.
    token_mask: `(B, L)` bool, which of them count.
    is_present: `(B,)` bool, which samples have it.
    """

    hidden_states: torch.Tensor
    token_mask: torch.Tensor
    is_present: torch.Tensor


class FusionPreTrainedModel(PreTrainedModel):
    """What the fusion models tell transformers about themselves."""

    config_class = HfLamFusionConfig
    base_model_prefix = "fusion"
    main_input_name = "input_ids"
    input_modalities = list(MODALITIES)
    supports_gradient_checkpointing = True
    _no_split_modules = ["FusionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": FusionLayer, "attentions": FusionSelfAttention}

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.main_input_name = INPUT_NAMES[config.modalities[0]]

    def get_input_embeddings(self) -> nn.Module:
        """Those of the text, or else of the first modality."""
        return self._embedding_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self._embedding_model.set_input_embeddings(value)

    @property
    def _embedding_model(self) -> Any:
        modalities = self.config.modalities
        return getattr(self.base_model, f"{'text' if 'text' in modalities else modalities[0]}_model")


class FusionModel(FusionPreTrainedModel):
    """The encoders of the modalities and the fusion layers, without mechanisms."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for name in config.modalities:
            encoder = make_encoder(name, config)
            width = encoder.config.hidden_size
            is_fitting = width == config.hidden_size
            setattr(self, f"{name}_model", encoder)
            setattr(self, f"{name}_projection", nn.Identity() if is_fitting else nn.Linear(width, config.hidden_size))
        self.encoder = FusionEncoder(config)
        # The most tokens that each modality can have; None where its encoder does not say.
        self.max_lengths = [max_length_of(self.modality_model(name)) for name in config.modalities]
        self.class_tokens = {name: count_class_tokens(self.modality_model(name)) for name in config.modalities}
        self.pooling = {name: self._pooling_of(name) for name in config.modalities}
        self.made_layers = {name: count_layers(self.modality_model(name)) for name in config.modalities}
        self.post_init()

    def modality_model(self, name: str) -> Any:
        """The encoder of one modality."""
        return getattr(self, f"{name}_model")

    @property
    def pooled_size(self) -> int:
        """Features of the pooled output."""
        parts = len(self.config.modalities) if self.config.combine == "concat" else 1
        return parts * self.config.hidden_size

    def _pooling_of(self, name: str) -> str:
        pooling = self.config.pooling
        chosen = pooling.get(name) if isinstance(pooling, Mapping) else pooling
        has_class_token = self.class_tokens[name] > 0
        if chosen == "cls" and not has_class_token:
            raise ValueError(
                f"pooling of {name} cannot be 'cls': {type(self.modality_model(name)).__name__} has no such token. "
                "Use 'mean'."
            )
        return chosen or ("cls" if has_class_token else "mean")

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        video_values: torch.Tensor | None = None,
        audio_values: torch.Tensor | None = None,
        has_text: torch.Tensor | None = None,
        has_image: torch.Tensor | None = None,
        has_video: torch.Tensor | None = None,
        has_audio: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> HfLamFusionModelOutput:
        """Any subset of the modalities, for a whole batch (leave an argument out) or sample by sample (`has_…`).

        Args:
            input_ids: `(B, L)`, the text, for the `input_ids` of the text encoder.
            attention_mask: `(B, L)`, 1 where the text has a token; no padding unless given. A row of zeros is a sample
                without text.
            token_type_ids: `(B, L)`, for the argument of the text encoder with this name.
            pixel_values: `(B, channels, height, width)`, the images, for the `pixel_values` of the image encoder.
            video_values: `(B, frames, channels, height, width)`, for the `pixel_values` of the video encoder.
            audio_values: `(B, frames, mel bins)`, for the `input_values` of the audio encoder; for one that takes
                spectrograms as images, such as a ViT, `(B, channels, height, width)`, for its `pixel_values`.
            has_text: `(B,)` bool, which samples have a text; all unless given. What stands in `input_ids` for the
                others is not read.
            has_image: likewise for `pixel_values`.
            has_video: likewise for `video_values`.
            has_audio: likewise for `audio_values`.
            kwargs: `output_attentions`, `output_hidden_states` and `return_dict`, as in transformers; both are about
                the fusion layers.

        Raises:
            TypeError: for an argument that is not one of these.
            ValueError: for no modality at all, also in one sample, one that the configuration does not have, batch
                sizes that disagree, or an input of another size than its encoder takes. The message names the
                modality. (In a compiled program, a sample without any modality gets zeros as its pooled output.)
        """
        check_options(kwargs)
        given = {"text": input_ids, "image": pixel_values, "video": video_values, "audio": audio_values}
        is_there = {"text": has_text, "image": has_image, "video": has_video, "audio": has_audio}
        batch_size, device = check_inputs(self, given, is_there, attention_mask, token_type_ids)
        streams: dict[str, Stream] = {}
        anchors: list[torch.Tensor] = []
        for name in self.config.modalities:
            values = given[name]
            if values is not None:
                streams[name] = self._stream(name, values, is_there[name], attention_mask, token_type_ids)
            elif self._needs_anchor(name):
                anchors.append(self._anchor(name, device))
        absent = torch.zeros(batch_size, dtype=torch.bool, device=device)
        presence = [streams[name].is_present if name in streams else absent for name in self.config.modalities]
        is_present = torch.stack(presence, dim=1)
        is_whole = attention_mask is None and all(present is None for present in is_there.values())
        if not (is_whole or torch.compiler.is_compiling() or is_present.is_meta):
            check_presence(self, is_present)

        hidden_states = torch.cat([stream.hidden_states for stream in streams.values()], dim=1)
        for anchor in anchors:
            hidden_states = hidden_states + anchor
        token_mask = torch.cat([stream.token_mask for stream in streams.values()], dim=1)
        lengths = {name: stream.hidden_states.shape[1] for name, stream in streams.items()}
        tokens = ModalityTokens(tuple(lengths.get(name, 0) for name in self.config.modalities), is_present)
        fused = self._fuse(hidden_states, None if is_whole else token_mask, tokens, return_dict=True, **kwargs)

        pieces = fused.last_hidden_state.split(list(lengths.values()), dim=1)
        streams = {
            name: stream._replace(hidden_states=piece)
            for (name, stream), piece in zip(streams.items(), pieces, strict=True)
        }
        indices = {name: index for index, name in enumerate(self.config.modalities)}
        ids = [torch.full((length,), indices[name], device=device) for name, length in lengths.items()]
        return HfLamFusionModelOutput(
            last_hidden_state=fused.last_hidden_state,
            pooler_output=self._pool(streams, is_present),
            hidden_states=fused.hidden_states,
            attentions=fused.attentions,
            token_mask=token_mask.long(),
            modality_ids=torch.cat(ids),
        )

    def _stream(
        self,
        name: str,
        values: torch.Tensor,
        present: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
    ) -> Stream:
        """One modality through its encoder. What stands in for samples that lack it is not read."""
        is_text = name == "text"
        is_whole = present is None and not (is_text and attention_mask is not None)
        is_present = values.new_ones(len(values), dtype=torch.bool) if present is None else present.bool()
        options: dict[str, torch.Tensor] = {}
        if is_text:
            mask = torch.ones_like(values) if attention_mask is None else attention_mask
            is_present = is_present & mask.bool().any(1)
            # An encoder that sees nothing at all gives NaN: a text that is not there is read, and left out later.
            options["attention_mask"] = torch.where(is_present[:, None], mask, torch.ones_like(mask))
            if token_type_ids is not None:
                options["token_type_ids"] = token_type_ids.masked_fill(~is_present[:, None], 0)
        if not is_whole:
            values = values.masked_fill(~is_present.view(-1, *(1 for _ in values.shape[1:])), 0)
        hidden_states = self._encode(name, values, options)
        if not is_whole:
            # No gradient from what is not there. (Zeros in its place would have an infinite one in a norm in fp16.)
            hidden_states = torch.where(is_present[:, None, None], hidden_states, hidden_states.detach())
        token_mask = is_present[:, None].expand(hidden_states.shape[:2])
        return Stream(hidden_states, token_mask & mask.bool() if is_text else token_mask, is_present)

    # Not on `forward`: the encoders capture outputs of their own, and a compiled program has one place for them all.
    @capture_outputs
    def _fuse(
        self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None, tokens: ModalityTokens, **kwargs: Any
    ) -> BaseModelOutput:
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=token_mask
        )
        hidden_states = self.encoder(hidden_states, attention_mask, **{MODALITY_TOKENS: tokens}, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def _encode(self, name: str, values: torch.Tensor, options: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The tokens of one modality, `(B, L, d)`."""
        encoder = self.modality_model(name)
        if values.is_floating_point():
            values = values.to(encoder.dtype)
        hidden_states = encoder(**{encoder.main_input_name: values}, return_dict=True, **options).last_hidden_state
        if hidden_states.dim() != 3:
            raise ValueError(
                f"the {name} encoder {type(encoder).__name__} gives {tuple(hidden_states.shape)}, which is no "
                "sequence of tokens (batch, tokens, features)."
            )
        # The encoders may lie on other devices than the inputs.
        return getattr(self, f"{name}_projection")(hidden_states).to(values.device)

    def _anchor(self, name: str, device: torch.device) -> torch.Tensor:
        """A zero that has all parameters of a modality in its graph.

        In data parallel training every process must have a gradient for every parameter, whatever modalities its batch
        has; and where parameters are sharded, every process must run every module.
        """
        shape = read_input_shape(self.config.modality_config(name)) or (1,)
        is_text = name == "text"
        dtype = torch.long if is_text else self.dtype
        hidden_states = self._encode(name, torch.zeros(1, *shape, dtype=dtype, device=device), {})
        return hidden_states.masked_fill(torch.ones_like(hidden_states, dtype=torch.bool), 0).sum()

    def _needs_anchor(self, name: str) -> bool:
        modules = (self.modality_model(name), getattr(self, f"{name}_projection"))
        parameters = [parameter for module in modules for parameter in module.parameters()]
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            return True
        # Sharded parameters are gathered when their module runs, also without gradients.
        return any(type(parameter).__name__ == "DTensor" for parameter in parameters) or any(
            getattr(child, "_is_fsdp_managed_module", False) for module in modules for child in module.modules()
        )

    def _pool(self, streams: Mapping[str, Stream], is_present: torch.Tensor) -> torch.Tensor:
        """What the modalities give, `(B, d)` or `(B, m · d)`."""
        pooled = {name: self._pool_one(name, stream) for name, stream in streams.items()}
        zeros = torch.zeros_like(next(iter(pooled.values())))
        stacked = torch.stack([pooled.get(name, zeros) for name in self.config.modalities], dim=1)
        stacked = stacked.masked_fill(~is_present.unsqueeze(-1), 0)
        if self.config.combine == "concat":
            return stacked.flatten(1)
        return stacked.sum(1) / is_present.sum(1, keepdim=True).clamp(min=1).to(stacked)

    def _pool_one(self, name: str, stream: Stream) -> torch.Tensor:
        hidden_states = stream.hidden_states
        if self.pooling[name] == "mean":
            weights = stream.token_mask.to(hidden_states).unsqueeze(-1)
            return (hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)
        if name == "text":
            first = stream.token_mask.int().argmax(1)  # with padding on the left, not the one at 0
            return hidden_states.gather(1, first.view(-1, 1, 1).expand(-1, 1, hidden_states.shape[2]))[:, 0]
        return hidden_states[:, : self.class_tokens[name]].mean(1)


class FusionForSequenceClassification(FusionPreTrainedModel):
    """A fusion model with a linear layer on its pooled output."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.fusion = FusionModel(config)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(self.fusion.pooled_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        video_values: torch.Tensor | None = None,
        audio_values: torch.Tensor | None = None,
        has_text: torch.Tensor | None = None,
        has_image: torch.Tensor | None = None,
        has_video: torch.Tensor | None = None,
        has_audio: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """As [`FusionModel.forward`], with a loss.

        Args:
            labels: `(B,)` classes, `(B, num_labels)` of zeros and ones for several labels, or `(B,)` numbers for
                regression: what `config.problem_type` says, or else what their dtype and `config.num_labels` say.
            input_ids, attention_mask, token_type_ids, pixel_values, video_values, audio_values, has_text, has_image,
                has_video, has_audio, kwargs: see [`FusionModel.forward`].
        """
        outputs = self.fusion(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            video_values=video_values,
            audio_values=audio_values,
            has_text=has_text,
            has_image=has_image,
            has_video=has_video,
            has_audio=has_audio,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class HfLamFusionMixin(HfLamMixin, FusionPreTrainedModel):
    """What the two public classes share: mechanisms, and the way from one checkpoint per modality."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As for the other classes; also a `ValueError` if the layers of a modality's encoder were cut."""
        base: Any = self.base_model
        for name in self.config.modalities:
            problem = explain_encoder(name, base.modality_model(name), base.made_layers[name])
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
        projections = [f"{name}_projection" for name in sources]
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

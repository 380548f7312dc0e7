# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The fusion model without mechanisms: its modalities in one sequence, and layers over it.

Source of the idea: Nagrani et al., "Attention Bottlenecks for Multimodal Fusion" (MBT), arXiv 2107.00135, for encoders
that run apart before their layers meet.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention_pass_hf_lam import MODALITY_TOKENS
from .configuration_hf_lam_fusion import MODALITIES, HfLamFusionConfig
from .fusion_encoders_hf_lam import (
    Encoded,
    Layers,
    ModalityInput,
    blank_input,
    count_layers,
    make_encoder,
    run_encoder,
)
from .fusion_features_hf_lam import FeatureInput, FeaturePositions, FeatureProjection
from .fusion_inputs_hf_lam import NamingForward, check_presence, read_inputs
from .fusion_layers_hf_lam import FusionEncoder, FusionLayer, FusionSelfAttention
from .hosts_facts_hf_lam import count_class_tokens
from .hosts_hf_lam import ModalityTokens, max_length_of
from .numerics_hf_lam import needs_plain_operators
from .padding_hf_lam import is_readable


@dataclasses.dataclass
class HfLamFusionModelOutput(BaseModelOutputWithPooling):
    """The output of a fusion model.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, tokens, hidden_size)`):
            The tokens of all modalities of the batch, one modality after the other.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, hidden_size)`, or `modalities * hidden_size`):
            The pooled outputs of the modalities, combined.
        hidden_states (`tuple(torch.FloatTensor)`, with `output_hidden_states=True`):
            The input of the first fusion layer and the output of every one, with the tokens of a bottleneck at their
            end, if there is one; the encoders' own layers are not in it.
        attentions (`tuple(torch.FloatTensor)`, with `output_attentions=True`):
            The attention maps of the fusion layers, `(batch_size, num_heads, tokens, tokens)`.
        token_mask (`torch.LongTensor` of shape `(batch_size, tokens)`):
            1 for the tokens that count: those that are not padding, of modalities that the sample has.
        modality_ids (`torch.LongTensor` of shape `(tokens,)`):
            The modality of each token, as an index of `config.modalities`.
        modality_states (`dict[str, torch.FloatTensor]`, with `output_modality_states=True`):
            The tokens in `last_hidden_state` of each modality of the batch, by its name.
    """

    token_mask: torch.Tensor | None = None
    modality_ids: torch.Tensor | None = None
    modality_states: dict[str, torch.Tensor] | None = None


class Stream(NamedTuple):
    """One modality of a batch.

    hidden_states: its tokens, `(B, L, d)`.
    token_mask: `(B, L)` bool, which of them count.
    is_present: `(B,)` bool, which samples have it.
    is_whole: whether the caller said nothing about what is lacking: no mask, and no `has_…`.
    """

    hidden_states: torch.Tensor
    token_mask: torch.Tensor
    is_present: torch.Tensor
    is_whole: bool


class FusionPreTrainedModel(PreTrainedModel):
    """The facts that fusion models tell transformers about themselves."""

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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        forward = cls.__dict__.get("forward")
        if forward is not None:
            setattr(cls, "forward", NamingForward(forward))  # noqa: B010

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.main_input_name = config.modality_arguments(config.modalities[0]).values

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FeatureProjection):
            init.normal_(module.weight, std=module.in_features**-0.5)

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the text, or else of the first modality; for vectors, their projection."""
        name = self._embedding_modality
        if name in (self.config.features or ()):
            return getattr(self.base_model, f"{name}_projection")
        base: Any = self.base_model
        return base.modality_model(name).get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        name = self._embedding_modality
        if name in (self.config.features or ()):
            setattr(self.base_model, f"{name}_projection", value)
        else:
            base: Any = self.base_model
            base.modality_model(name).set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Resize the embeddings of the text as in transformers, where there is an encoder of texts."""
        if self.config.text_config is None:
            return super().resize_token_embeddings(*args, **kwargs)
        base: Any = self.base_model
        encoder = base.modality_model("text")
        embeddings = encoder.resize_token_embeddings(*args, **kwargs)
        self.config.text_config.vocab_size = encoder.config.vocab_size
        return embeddings

    @property
    def _embedding_modality(self) -> str:
        return "text" if self.config.text_config is not None else self.config.modalities[0]


class FusionModel(FusionPreTrainedModel):
    """The encoders of the modalities and the fusion layers, without mechanisms."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        # The most tokens that each modality can have; None where nothing says so.
        self.max_lengths: list[int | None] = []
        self.class_tokens: dict[str, int] = {}
        self.made_layers: dict[str, Layers] = {}
        for name in config.modalities:
            options = config.modality_config(name)
            projection: nn.Module
            # Not by its class: the configuration may come from another copy of this code in the same process.
            if name in (config.features or ()):
                projection = FeatureProjection(options.size, config.hidden_size) if options.project else nn.Identity()
                setattr(self, f"{name}_model", FeatureInput(options, config.layer_norm_eps))
                setattr(self, f"{name}_positions", FeaturePositions(options, config.hidden_size))
                self.max_lengths.append(options.max_length)
                self.class_tokens[name] = options.class_tokens
            else:
                encoder = make_encoder(name, config)
                width = encoder.config.hidden_size
                is_fitting = width == config.hidden_size
                projection = nn.Identity() if is_fitting else nn.Linear(width, config.hidden_size)
                setattr(self, f"{name}_model", encoder)
                self.max_lengths.append(max_length_of(encoder))
                self.class_tokens[name] = count_class_tokens(encoder)
                self.made_layers[name] = count_layers(encoder)
            setattr(self, f"{name}_projection", projection)
        self.encoder = FusionEncoder(config)
        self.pooling = {name: self._pooling_of(name) for name in config.modalities}
        self.post_init()

    def modality_model(self, name: str) -> Any:
        """The encoder of one modality, or the `FeatureInput` of one that is given as vectors."""
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
            has_none = f"{type(self.modality_model(name)).__name__} has no such token"
            if name in (self.config.features or ()):
                has_none = "its features have class_tokens=0"
            raise ValueError(f"pooling of {name} cannot be 'cls': {has_none}. Use 'mean'.")
        return chosen or ("cls" if has_class_token else "mean")

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        video_values: torch.Tensor | None = None,
        audio_values: torch.Tensor | None = None,
        audio_mask: torch.Tensor | None = None,
        has_text: torch.Tensor | None = None,
        has_image: torch.Tensor | None = None,
        has_video: torch.Tensor | None = None,
        has_audio: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> HfLamFusionModelOutput:
        """Any subset of the modalities, for a whole batch (leave an argument out) or sample by sample (`has_…`).

        A modality of vectors called `NAME` has the arguments `NAME_features`, `(B, L, size)`; `NAME_mask`, `(B, L)`,
        1 where the sample has a vector; `NAME_positions`, `(B, L)`, such as the seconds at which they begin; and
        `has_NAME`, `(B,)`. All but the first may be left out.

        Args:
            input_ids: `(B, L)`, the text, for the `input_ids` of the text encoder.
            attention_mask: `(B, L)`, 1 where the text has a token; no padding unless given. A row of zeros is a sample
                without text, as a row of zeros in any mask is one without that modality.
            token_type_ids: `(B, L)`, for the argument of the text encoder with this name.
            pixel_values: `(B, channels, height, width)`, the images, for the `pixel_values` of the image encoder; for
                one that takes patches (SigLIP 2), `(B, patches, numbers)`.
            image_mask: `(B, patches)`, 1 where such an image has a patch.
            spatial_shapes: `(B, 2)`, the rows and columns of its patches.
            video_values: `(B, frames, channels, height, width)`, for the values that the video encoder takes.
            audio_values: `(B, frames, mel bins)`, for the `input_values` of the audio encoder; whatever other shape it
                takes: `(B, samples)` of plain sound, for example, or `(B, channels, height, width)` for a ViT that
                takes spectrograms as images.
            audio_mask: `(B, samples)` or `(B, frames)`, 1 where there is sound, for an encoder of sounds of any
                length.
            has_text: `(B,)` bool, which samples have a text; all unless given. What stands in `input_ids` for the
                others is not read.
            has_image: likewise for `pixel_values`.
            has_video: likewise for `video_values`.
            has_audio: likewise for `audio_values`.
            kwargs: the arguments of modalities of vectors; `output_attentions`, `output_hidden_states` and
                `return_dict`, as in transformers, which are about the fusion layers; and `output_modality_states`, for
                the tokens of each modality apart.

        Raises:
            TypeError: for an argument that is not one of these.
            ValueError: for no modality at all, also in one sample, one that the configuration does not have, batch
                sizes that disagree, or an input of another size than its encoder takes. The message names the
                modality. (In a compiled program, a sample without any modality gets zeros as its pooled output.)
        """
        arguments = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
            "image_mask": image_mask,
            "spatial_shapes": spatial_shapes,
            "video_values": video_values,
            "audio_values": audio_values,
            "audio_mask": audio_mask,
            "has_text": has_text,
            "has_image": has_image,
            "has_video": has_video,
            "has_audio": has_audio,
        }
        inputs, options = read_inputs(self, arguments, kwargs)
        wants_states = options.pop("output_modality_states", False)
        first = next(iter(inputs.values())).values
        streams: dict[str, Stream] = {}
        anchors: list[torch.Tensor] = []
        for name in self.config.modalities:
            if name in inputs:
                streams[name] = self._stream(name, inputs[name])
            elif self._needs_anchor(name):
                anchors.append(self._anchor(name, first.device))
        absent = torch.zeros(first.shape[0], dtype=torch.bool, device=first.device)
        presence = [streams[name].is_present if name in streams else absent for name in self.config.modalities]
        is_present = torch.stack(presence, dim=1)
        is_whole = all(stream.is_whole for stream in streams.values())
        if not is_whole and is_readable(is_present):
            check_presence(self, is_present)

        hidden_states = torch.cat([stream.hidden_states for stream in streams.values()], dim=1)
        for anchor in anchors:
            hidden_states = hidden_states + anchor
        token_mask = torch.cat([stream.token_mask for stream in streams.values()], dim=1)
        lengths = {name: stream.hidden_states.shape[1] for name, stream in streams.items()}
        tokens = ModalityTokens(tuple(lengths.get(name, 0) for name in self.config.modalities), is_present)
        fused = self._fuse(hidden_states, None if is_whole else token_mask, tokens, return_dict=True, **options)

        pieces = fused.last_hidden_state.split(list(lengths.values()), dim=1)
        streams = {
            name: stream._replace(hidden_states=piece)
            for (name, stream), piece in zip(streams.items(), pieces, strict=True)
        }
        indices = {name: index for index, name in enumerate(self.config.modalities)}
        ids = [torch.full((length,), indices[name], device=first.device) for name, length in lengths.items()]
        return HfLamFusionModelOutput(
            last_hidden_state=fused.last_hidden_state,
            pooler_output=self._pool(streams, is_present),
            hidden_states=fused.hidden_states,
            attentions=fused.attentions,
            token_mask=token_mask.long(),
            modality_ids=torch.cat(ids),
            modality_states={name: stream.hidden_states for name, stream in streams.items()} if wants_states else None,
        )

    def _stream(self, name: str, given: ModalityInput) -> Stream:
        """One modality through its encoder. What stands in for samples that lack it is not read."""
        values, mask, others = given.values, given.mask, given.others
        is_whole = given.present is None and mask is None
        is_present = values.new_ones(values.shape[0], dtype=torch.bool)
        if given.present is not None:
            is_present = given.present.bool()
        if mask is not None:
            is_present = is_present & mask.bool().any(1)
            # An encoder that sees nothing at all gives NaN: what is not there is read, and left out later.
            mask = torch.where(is_present[:, None], mask, torch.ones_like(mask))
        if not is_whole:
            values = _blank(values, is_present)
            others = {key: _blank(value, is_present) for key, value in others.items()}
        hidden_states, token_mask = self._encode(name, values, mask, others)
        if not is_whole:
            # No gradient from what is not there. (Zeros in its place would have an infinite one in a norm in fp16.)
            hidden_states = torch.where(is_present[:, None, None], hidden_states, hidden_states.detach())
        counts = is_present[:, None].expand(hidden_states.shape[:2])
        return Stream(hidden_states, counts if token_mask is None else counts & token_mask, is_present, is_whole)

    # Not on `forward`: the encoders capture outputs of their own, and a compiled program has one place for them all.
    @capture_outputs
    def _fuse(
        self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None, tokens: ModalityTokens, **kwargs: Any
    ) -> BaseModelOutput:
        if token_mask is not None and needs_plain_operators():
            token_mask = token_mask[:, None, None, :]  # transformers takes it as it is then, and looks at no value
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=token_mask
        )
        hidden_states = self.encoder(hidden_states, attention_mask, **{MODALITY_TOKENS: tokens}, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def _encode(
        self, name: str, values: torch.Tensor, mask: torch.Tensor | None, others: Mapping[str, torch.Tensor]
    ) -> Encoded:
        """The tokens of one modality, `(B, L, d)`."""
        model, projection = self.modality_model(name), getattr(self, f"{name}_projection")
        if isinstance(model, FeatureInput):
            is_vector = None if mask is None else mask.bool()
            if is_vector is not None:
                # Whatever padding holds, NaN too, is in no product.
                values = values.masked_fill(~is_vector.unsqueeze(-1), 0)
            # Late fusion of vectors that nothing is done to has no weights of its own.
            dtype = next((parameter.dtype for parameter in self.parameters()), values.dtype)
            hidden_states = projection(model(values, dtype))
            return Encoded(getattr(self, f"{name}_positions")(hidden_states, is_vector, **others), is_vector)
        encoded = run_encoder(name, model, values, mask, others)
        # The encoders may lie on other devices than the inputs.
        return encoded._replace(hidden_states=projection(encoded.hidden_states).to(values.device))

    def _anchor(self, name: str, device: torch.device) -> torch.Tensor:
        """A zero that has all parameters of a modality in its graph.

        In data parallel training every process must have a gradient for every parameter, whatever modalities its batch
        has; and where parameters are sharded, every process must run every module.
        """
        hidden_states = self._encode(name, self.blank_values(name, device), None, {}).hidden_states
        return hidden_states.masked_fill(torch.ones_like(hidden_states, dtype=torch.bool), 0).sum()

    def blank_values(self, name: str, device: torch.device) -> torch.Tensor:
        """The smallest input of one modality, of zeros, for one sample."""
        model = self.modality_model(name)
        if isinstance(model, FeatureInput):
            return torch.zeros(1, 1, model.config.size, device=device)
        return blank_input(name, model).to(device)

    def _needs_anchor(self, name: str) -> bool:
        parts = (f"{name}_model", f"{name}_projection", f"{name}_positions")
        modules = [getattr(self, part) for part in parts if hasattr(self, part)]
        parameters = (parameter for module in modules for parameter in module.parameters())
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            return True
        return any(map(is_sharded, modules))

    def _pool(self, streams: Mapping[str, Stream], is_present: torch.Tensor) -> torch.Tensor:
        """Pool the modalities, `(B, d)` or `(B, m · d)`."""
        pooled = {name: self._pool_one(name, stream) for name, stream in streams.items()}
        zeros = torch.zeros_like(next(iter(pooled.values())))
        stacked = torch.stack([pooled.get(name, zeros) for name in self.config.modalities], dim=1)
        stacked = stacked.masked_fill(~is_present.unsqueeze(-1), 0)
        if self.config.combine == "concat":
            return stacked.flatten(1)
        return stacked.sum(1) / is_present.sum(1, keepdim=True).clamp(min=1).to(stacked)

    def _pool_one(self, name: str, stream: Stream) -> torch.Tensor:
        counts = stream.token_mask
        if self.pooling[name] == "cls":
            # The first that count: with padding on the left they are not those at 0.
            counts = counts & (counts.cumsum(1) <= self.class_tokens[name])
        weights = counts.to(stream.hidden_states).unsqueeze(-1)
        return (stream.hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters are gathered when the module runs, also without gradients: every process must run it."""
    return any(type(parameter).__name__ == "DTensor" for parameter in module.parameters()) or any(
        getattr(child, "_is_fsdp_managed_module", False) for child in module.modules()
    )


def _blank(values: torch.Tensor, is_present: torch.Tensor) -> torch.Tensor:
    """Zeros for the samples that lack a modality."""
    return values.masked_fill(~is_present.view(-1, *(1 for _ in values.shape[1:])), 0)

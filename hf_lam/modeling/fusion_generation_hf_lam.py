# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""A fusion model that writes text: one of transformers' own decoders looks at the tokens of all modalities.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from .attention_pass_hf_lam import MODALITY_TOKENS
from .cross_lam_hf_lam import add_cross_lam
from .decoder_options_hf_lam import TOKEN_IDS
from .fusion_decoders_hf_lam import make_decoder, width_of
from .fusion_heads_hf_lam import takes_inputs
from .fusion_model_hf_lam import FusionModel, FusionPreTrainedModel, HfLamFusionModelOutput
from .hosts_hf_lam import ModalityTokens, read_tokens

# transformers called it past_key_values up to 5.23.
CACHE = "cache" if "cache" in {field.name for field in dataclasses.fields(Seq2SeqLMOutput)} else "past_key_values"


class FusionForConditionalGeneration(FusionPreTrainedModel, GenerationMixin):
    """A fusion model under a decoder with cross-attention, which writes about all that a sample has."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.decoder is None:
            raise ValueError(
                f"{type(self).__name__} needs the configuration of a decoder: HfLamFusionConfig(…, decoder=…), or "
                "from_modality_pretrained(…, decoder=…)."
            )
        self.fusion = FusionModel(config)
        self.decoder = make_decoder(config.decoder)
        width = width_of(self.decoder.config)
        self.projection = nn.Identity() if width == config.hidden_size else nn.Linear(config.hidden_size, width)
        if config.decoder_lam is not None:
            add_cross_lam(self.decoder, config.decoder_lam, read_tokens(self.fusion))
        self._can_compile_fullgraph = self.decoder._can_compile_fullgraph
        self._tokens_of_decoder = {name: getattr(config.decoder, name, None) for name in TOKEN_IDS}
        self.post_init()

    def _restore_tokens(self) -> None:
        """Undo what `Trainer` does with a processor: it takes the tokenizer of what is read for that of the decoder.

        It writes the ids of its special tokens into the configurations of the decoder and of generation.
        """
        for name, before in self._tokens_of_decoder.items():
            now, own = getattr(self.config.decoder, name, None), getattr(self.config, name)
            if now == before or own is None:
                continue
            setattr(self.config.decoder, name, before)
            found = getattr(self.generation_config, name)
            if found == now or (isinstance(found, list) and now in found):
                setattr(self.generation_config, name, own)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        self._restore_tokens()
        super().save_pretrained(*args, **kwargs)

    def get_encoder(self, *args: Any, **kwargs: Any) -> Any:
        """The fusion model."""
        return self.fusion

    def get_decoder(self) -> Any:
        """The causal language model on it."""
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the decoder."""
        return self.decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """The output embeddings of the decoder."""
        return self.decoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.decoder.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Resize the embeddings of the decoder, as in transformers; those of texts that are read stay."""
        embeddings = self.decoder.resize_token_embeddings(*args, **kwargs)
        # Some decoders have a copy of their configuration.
        self.config.decoder.vocab_size = self.decoder.config.vocab_size
        return embeddings

    @can_return_tuple
    @takes_inputs
    def forward(
        self,
        *args: Any,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        encoder_outputs: Any = None,
        cache: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Run the fusion model as [`FusionModel.forward`] does, and let the decoder predict the next token.

        Args:
            labels: `(B, T)`, the tokens of the text and of its end, without that of its start; -100 is none. The loss
                is the mean over them.
            decoder_input_ids: `(B, T)`, the text so far, which begins with `config.decoder_start_token_id`. Those of
                the labels unless given, or without labels either, the start alone.
            decoder_attention_mask: `(B, T)`, and as many places more as the cache has; 1 where the text has a token.
            decoder_inputs_embeds: `(B, T, width)`, in place of `decoder_input_ids`.
            encoder_outputs: output of the fusion model for the same samples, whose modalities are not read then.
            cache: what the decoder computed for the tokens before, as in transformers.
            past_key_values: the same, as transformers called it up to 5.23.
            use_cache: whether to return a cache; the decoder's configuration decides unless given, but not in training
                or with labels.
            args: see [`FusionModel.forward`].
            kwargs: likewise; `num_items_in_batch`, the number of labels of which the loss is a share; and further
                arguments of the decoder, with `decoder_` in front.

        Raises:
            TypeError: for an argument that neither takes.
            ValueError: for labels of another shape than the text, or without a `config.decoder_start_token_id`.
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        flags = {name: kwargs.pop(name, None) for name in ("output_attentions", "output_hidden_states")}
        flags = {name: getattr(self.config, name) if flag is None else flag for name, flag in flags.items()}
        others = self._pop_decoder_options(kwargs)
        if encoder_outputs is None:
            encoder_outputs = self._encode(*args, **flags, **kwargs)
        memory, token_mask = _read_memory(encoder_outputs)
        if self.config.decoder_lam is not None:
            others[MODALITY_TOKENS] = self._read_modalities(encoder_outputs)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._start(memory) if labels is None else self._shift(labels)
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            encoder_hidden_states=self.projection(memory),
            encoder_attention_mask=token_mask,
            use_cache=self._uses_cache(use_cache, labels),
            return_dict=True,
            **{CACHE: past_key_values if cache is None else cache},
            **flags,
            **others,
        )
        loss = None if labels is None else generation_loss(outputs.logits, labels, num_items_in_batch)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=outputs.logits,
            **{CACHE: getattr(outputs, CACHE)},
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=getattr(encoder_outputs, "hidden_states", None),
            encoder_attentions=getattr(encoder_outputs, "attentions", None),
        )

    def _encode(self, *args: Any, **kwargs: Any) -> HfLamFusionModelOutput:
        """Run the fusion model, and with masks on cross-attention, find which tokens belong to which modality."""
        wants_states = self.config.decoder_lam is not None
        return self.fusion(*args, **{**kwargs, "return_dict": True, "output_modality_states": wants_states})

    def _read_modalities(self, encoder_outputs: Any) -> ModalityTokens | None:
        """Read which modality the tokens belong to; None if nothing says it."""
        if not isinstance(encoder_outputs, Mapping):
            return None
        names, states = self.config.modalities, encoder_outputs.get("modality_states")
        if states is not None:
            lengths = [states[name].shape[1] if name in states else 0 for name in names]
        elif (ids := encoder_outputs.get("modality_ids")) is not None:
            lengths = torch.bincount(ids, minlength=len(names)).tolist()
        else:
            return None
        return ModalityTokens(tuple(lengths))

    def _pop_decoder_options(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Take out the options that are for the decoder alone, by its names."""
        prefix = "decoder_"
        given = {name: kwargs.pop(name) for name in [*kwargs] if name.startswith(prefix)}
        options = {name: value for name, value in given.items() if value is not None}
        if not options:
            return {}
        taken = inspect.signature(type(self.decoder).forward).parameters
        unknown = sorted(name for name in options if name.removeprefix(prefix) not in taken)
        if unknown:
            raise TypeError(f"{type(self.decoder).__name__}, the decoder, takes no {', '.join(unknown)}.")
        return {name.removeprefix(prefix): value for name, value in options.items()}

    def _uses_cache(self, use_cache: bool | None, labels: Tensor | None) -> bool:
        if use_cache is not None:
            return use_cache
        if labels is not None or self.training or torch.compiler.is_exporting():
            return False
        return bool(getattr(self.decoder.config, "use_cache", True))

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Shift labels into the decoder's input, for training; transformers' collator asks for it."""
        return self._shift(labels)

    def _shift(self, labels: Tensor) -> Tensor:
        """The labels one place later, behind the start."""
        if labels.dim() != 2:
            raise ValueError(f"labels must be of shape (batch, tokens), got {tuple(labels.shape)}.")
        start, pad = self._token("decoder_start_token_id"), self._token("pad_token_id")
        shifted = torch.cat([labels.new_full((len(labels), 1), start), labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == -100, pad)

    def _start(self, memory: Tensor) -> Tensor:
        start = self._token("decoder_start_token_id")
        return torch.full((memory.shape[0], 1), start, dtype=torch.long, device=memory.device)

    def _token(self, name: str) -> int:
        token = getattr(self.config, name)
        if token is None:
            raise ValueError(
                f"the configuration of this model has no {name}. Set model.config.{name}, and that of "
                "model.generation_config, to a token of the decoder's tokenizer."
            )
        return token

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Generate text as in transformers, with the arguments of [`FusionModel.forward`]; the fusion model runs once.

        Args:
            inputs: the values of the first modality of the configuration; others by their names.
            generation_config: options of the generation, as in transformers; so are all other arguments.
                `decoder_input_ids` are the beginning of a text.
            args: see `GenerationMixin.generate`.
            kwargs: likewise. `labels`, which a batch may have, are not looked at.

        Returns:
            `(B, T)`, the tokens of the texts, the start in front; or a `ModelOutput`, as in transformers.
        """
        self._restore_tokens()
        kwargs.pop("labels", None)
        names = {key for name in self.config.modalities for key in self.config.modality_arguments(name).names}
        names |= {f"has_{name}" for name in self.config.modalities}
        given = {name: kwargs.pop(name) for name in [*kwargs] if name in names}
        if inputs is not None:
            if given.get(self.main_input_name) is not None:
                raise ValueError(f"inputs are the {self.main_input_name}; give one of them.")
            given[self.main_input_name] = inputs
        encoder_outputs = kwargs.pop("encoder_outputs", None)
        if encoder_outputs is None:
            defaults = self.generation_config if generation_config is None else generation_config
            flags = {name: kwargs.get(name, getattr(defaults, name, None)) for name in _RETURNED}
            encoder_outputs = self._encode(**given, **flags)
        elif not isinstance(encoder_outputs, Mapping):
            encoder_outputs = {"last_hidden_state": encoder_outputs[0]}
        # Made anew, because transformers writes into it where several beams look at each sample.
        memory = HfLamFusionModelOutput(**{name: encoder_outputs.get(name) for name in _KEPT})
        return super().generate(None, generation_config, *args, encoder_outputs=memory, **kwargs)


# What can be asked of the layers.
_RETURNED = ("output_attentions", "output_hidden_states")
# What generation has of the fusion model's outputs.
_KEPT = ("last_hidden_state", "token_mask", "modality_states", "hidden_states", "attentions")


def _read_memory(encoder_outputs: Any) -> tuple[Tensor, Tensor | None]:
    """The tokens of all modalities, `(B, L, d)`, and `(B, L)`, which of them count; None for all."""
    if isinstance(encoder_outputs, Mapping):
        return encoder_outputs["last_hidden_state"], encoder_outputs.get("token_mask")
    return encoder_outputs[0], None


def generation_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """The mean cross entropy over the labels that there are, or their share of a larger batch; 0 if there are none.

    Args:
        logits: `(B, T, words)`.
        labels: `(B, T)`, of the tokens that come next; -100 where there is none.
        num_items_in_batch: the number of labels in all batches that a step is made of.

    Raises:
        ValueError: for labels of another shape than the text.
    """
    if labels.shape != logits.shape[:2]:
        raise ValueError(f"labels must be of shape {tuple(logits.shape[:2])}, one a token, got {tuple(labels.shape)}.")
    total = cross_entropy(logits.float().transpose(1, 2), labels.to(logits.device), reduction="sum")
    return total / ((labels != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)

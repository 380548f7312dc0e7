# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Moments and highlights: the windows of a video that a query speaks of, and a score for every clip.

Source: Lei, Berg & Bansal, "QVHighlights: Detecting Moments and Highlights in Videos via Natural Language Queries",
arXiv 2107.09609 (Moment-DETR), with the fusion model in place of its encoder; the learnable mask was shown on this
task (Barrios & Jin, arXiv 2406.02761).

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .fusion_features_hf_lam import sinusoidal_positions
from .fusion_heads_hf_lam import TokensInStep, takes_inputs
from .fusion_model_hf_lam import FusionModel, FusionPreTrainedModel, HfLamFusionModelOutput
from .moment_losses_hf_lam import FOREGROUND, moment_losses, windows_of
from .moment_options_hf_lam import MomentOptions


@dataclasses.dataclass
class HfLamFusionMomentOutput(ModelOutput):
    """The output of a model that finds moments.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, with labels):
            The weighted sum of the losses.
        loss_dict (`dict[str, torch.FloatTensor]`, with labels):
            Each of them, without its weight; those of the decoder's lower layers end in the layer's number.
        logits (`torch.FloatTensor` of shape `(batch_size, num_queries, 2)`):
            Whether a query found a window (0) or nothing (1).
        pred_spans (`torch.FloatTensor` of shape `(batch_size, num_queries, 2)`):
            Center and width of its window, as fractions of the sample's clips.
        saliency_scores (`torch.FloatTensor` of shape `(batch_size, clips)`):
            A score for every clip.
        clip_mask (`torch.LongTensor` of shape `(batch_size, clips)`):
            1 where the sample has a clip.
        hidden_states (`tuple(torch.FloatTensor)`, with `output_hidden_states=True`):
            Hidden states of the fusion layers.
        attentions (`tuple(torch.FloatTensor)`, with `output_attentions=True`):
            Attention weights of the fusion layers.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_spans: Tensor | None = None
    saliency_scores: Tensor | None = None
    clip_mask: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Moment(NamedTuple):
    """A window of a video.

    start: beginning of the window in seconds.
    end: end of the window in seconds.
    score: the probability that it is one, from 0 to 1.
    """

    start: float
    end: float
    score: float


class Retrieved(NamedTuple):
    """The moments found in one video.

    moments: the best first.
    saliency: `(clips,)`, the score of every clip.
    """

    moments: list[Moment]
    saliency: Tensor


class _DecoderConfig:
    """The configuration that transformers' layers of DETR ask for, with the values of the fusion layers."""

    def __init__(self, config: Any, dropout: float) -> None:
        self._config = config
        self.d_model = config.hidden_size
        self.decoder_attention_heads = config.num_attention_heads
        self.decoder_ffn_dim = config.intermediate_size
        self.activation_function = config.hidden_act
        self.dropout = self.attention_dropout = dropout
        self.activation_dropout = 0.0

    @property
    def _attn_implementation(self) -> str:
        # The decoder has few queries, and a mask with numbers in it, which the others do not take.
        return "eager" if self._config._attn_implementation == "eager" else "sdpa"


class MomentDecoder(nn.Module):
    """Learned queries that look at the tokens of the fusion model: transformers' layers of DETR.

    Args:
        config: configuration of the fusion model.
        options: options of the head, which say how many queries and layers there are.
    """

    def __init__(self, config: Any, options: MomentOptions) -> None:
        super().__init__()
        # Not before one is made: fusion models of other kinds need no DETR.
        from transformers.models.detr.modeling_detr import DetrDecoderLayer

        layer_config: Any = _DecoderConfig(config, options.dropout)
        self.queries = nn.Embedding(options.num_queries, config.hidden_size)
        self.layers = nn.ModuleList(DetrDecoderLayer(layer_config) for _ in range(options.dec_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, memory: Tensor, places: Tensor, token_mask: Tensor) -> list[Tensor]:
        """The states of the queries after each layer, `(B, Q, d)`.

        Args:
            memory: `(B, L, d)`, the tokens.
            places: `(B, L, d)`, what is added to them where keys are made.
            token_mask: `(B, L)` bool, which of them count.
        """
        queries = self.queries.weight.to(memory.dtype).expand(memory.shape[0], -1, -1)
        mask = memory.new_zeros(token_mask.shape).masked_fill(~token_mask, torch.finfo(memory.dtype).min)
        mask = mask[:, None, None, :].expand(-1, -1, queries.shape[1], -1)
        hidden_states, states = torch.zeros_like(queries), []
        for layer in self.layers:
            # By place: checkpointing with `use_reentrant` gives keywords no gradient.
            hidden_states = layer(hidden_states, None, places, queries, memory, mask)
            states.append(self.norm(hidden_states))
        return states


class FusionForMomentRetrieval(TokensInStep, FusionPreTrainedModel):
    """A fusion model over clips and a query, with a decoder that predicts windows, and a score for each clip.

    Clips are the tokens of `config.label_modalities`, which lie in step; all other modalities are the query, or what
    helps: sound, subtitles.
    """

    _no_split_modules = ["FusionLayer", "DetrDecoderLayer"]
    # A loss needs one of them, whichever the data have.
    optional_labels = ("span_labels", "saliency_labels")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        from transformers.models.detr.modeling_detr import DetrMLPPredictionHead

        self.options = MomentOptions(**(config.moments or {}))
        self.label_modalities: list[str] = config.labelled_modalities
        if set(self.label_modalities) == set(config.modalities):
            raise ValueError(
                f"{type(self).__name__}: label_modalities must say which modalities are the clips of the video, such "
                f"as {config.modalities[:1]}; of {config.modalities} none is left for the query."
            )
        size = config.hidden_size
        self.fusion = FusionModel(config)
        self.saliency = nn.Linear(self.step_size, 1)
        self.decoder = MomentDecoder(config, self.options)
        self.classifier = nn.Linear(size, 2)
        self.span_predictor = DetrMLPPredictionHead(size, size, 2, num_layers=3)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.decoder.queries:
            # They stand for different places from the start; with small ones all would find the same window.
            init.normal_(module.weight, std=1.0)

    @can_return_tuple
    @takes_inputs
    def forward(
        self,
        *args: Any,
        span_labels: Tensor | None = None,
        saliency_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> HfLamFusionMomentOutput:
        """Run the model with the arguments of [`FusionModel.forward`], and compute the loss.

        Args:
            span_labels: `(B, W, 2)`, center and width of the true windows, as fractions of the sample's clips; NaN in
                the rows that a sample does not have.
            saliency_labels: `(B, L)`, what people think of a clip that the query speaks of, at least 0; -1 for the
                other clips, NaN where there is none, or nobody said.
            args: see [`FusionModel.forward`].
            kwargs: likewise.

        Raises:
            ImportError: with `span_labels`, if SciPy is not installed.
            ValueError: for labels of another shape.
        """
        kwargs.pop("num_items_in_batch", None)
        outputs = self.fusion(*args, return_dict=True, output_modality_states=True, **kwargs)
        clips, is_clip = self.in_step(outputs)
        scores = self.saliency(clips).squeeze(-1)
        layers = self._decode(outputs, is_clip)
        loss, losses = None, None
        if span_labels is not None or saliency_labels is not None:
            self._check_labels(scores, span_labels, saliency_labels)
            if saliency_labels is not None:
                saliency_labels = saliency_labels.float().masked_fill(~is_clip, torch.nan)
            counted = layers if self.options.aux_loss else layers[-1:]
            losses = moment_losses(counted, span_labels, scores, saliency_labels, self.options)
            loss = losses.pop("loss")
        logits, spans = layers[-1]
        return HfLamFusionMomentOutput(
            loss=loss,
            loss_dict=losses,
            logits=logits,
            pred_spans=spans,
            saliency_scores=scores,
            clip_mask=is_clip.long(),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _check_labels(self, scores: Tensor, span_labels: Tensor | None, saliency_labels: Tensor | None) -> None:
        if span_labels is not None and (span_labels.dim() != 3 or span_labels.shape[::2] != (len(scores), 2)):
            raise ValueError(
                f"span_labels must be of shape ({len(scores)}, windows, 2), center and width, got "
                f"{tuple(span_labels.shape)}."
            )
        if saliency_labels is not None and saliency_labels.shape != scores.shape:
            raise ValueError(
                f"saliency_labels must be of shape {tuple(scores.shape)}, one for each clip of "
                f"{', '.join(self.label_modalities)}, got {tuple(saliency_labels.shape)}."
            )

    def _decode(self, outputs: HfLamFusionModelOutput, is_clip: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Logits and spans, `(B, Q, 2)` both, after every layer of the decoder."""
        assert outputs.last_hidden_state is not None and outputs.token_mask is not None
        places = self._clip_positions(outputs, is_clip)
        states = self.decoder(outputs.last_hidden_state, places, outputs.token_mask.bool())
        return [(self.classifier(state), self.span_predictor(state).sigmoid()) for state in states]

    def _clip_positions(self, outputs: HfLamFusionModelOutput, is_clip: Tensor) -> Tensor:
        """The addend to the keys, `(B, tokens, d)`: the places of clips; zeros for other tokens.

        A clip has one place in all modalities, also where one of them lacks another clip.
        """
        assert outputs.modality_states is not None
        places = (is_clip.cumsum(1) - 1).clamp(min=0)
        pieces = []
        for name, state in outputs.modality_states.items():
            if name in self.label_modalities:
                of_tokens = pad(places, (state.shape[1] - places.shape[1], 0))  # class tokens lie at 0
                pieces.append(sinusoidal_positions(of_tokens, state.shape[-1]).to(state.dtype))
            else:
                pieces.append(torch.zeros_like(state))
        return torch.cat(pieces, dim=1)

    # --- inference ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def retrieve(
        self,
        features: Any,
        query: Any,
        *,
        processor: Any = None,
        top_k: int | None = None,
    ) -> Retrieved:
        """Find the moments of one video that a query speaks of.

        Args:
            features: `(clips, size)`, an array or tensor, of the only modality of vectors that is clips; or of several
                modalities by their names.
            query: a text, for a model with a text encoder; or `(words, size)` vectors of the only other modality; or
                the arguments of the model that say it, with an axis for the batch, as a tokenizer gives them.
            processor: the model's processor or tokenizer, for a text.
            top_k: number of moments to return; as many as there are learned queries unless given.

        Raises:
            ValueError: for a `top_k` below 1, a text without a processor, or vectors that could be of several
                modalities.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}.")
        vectors = dict(features) if isinstance(features, Mapping) else {self._only_one(True, "features"): features}
        inputs: dict[str, Any] = {}
        if isinstance(query, str):
            if processor is None:
                raise ValueError("a query that is text needs the processor of the model: retrieve(…, processor=…).")
            inputs = {**processor(text=[query], return_tensors="pt")}
        elif isinstance(query, Mapping):
            inputs = {**query}
        else:
            vectors[self._only_one(False, "query")] = query
        for name, values in vectors.items():
            inputs[self.config.modality_arguments(name).values] = torch.as_tensor(values).unsqueeze(0)
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        in_training = [module for module in self.modules() if module.training]  # a frozen encoder may be in eval mode
        try:
            outputs = self.eval()(**inputs, return_dict=True)
        finally:
            for module in in_training:
                module.training = True
        return self.post_process(outputs, top_k)[0]

    def _only_one(self, is_of_clips: bool, argument: str) -> str:
        """The only modality of vectors that is clips, or that is not."""
        names = [name for name in self.config.features or () if (name in self.label_modalities) == is_of_clips]
        if len(names) != 1:
            raise ValueError(
                f"{argument} must say what they are, as the model has "
                f"{f'the vectors {names}' if names else 'no such vectors'} for it: "
                + ("{name: array}." if is_of_clips else "the arguments of the model, such as {'input_ids': …}.")
            )
        return names[0]

    def post_process(
        self, outputs: HfLamFusionMomentOutput | Mapping[str, Tensor], top_k: int | None = None
    ) -> list[Retrieved]:
        """Convert outputs of the model to seconds: for every sample, windows within the video, the likeliest first.

        Args:
            outputs: outputs of the model, with `logits`, `pred_spans`, `saliency_scores` and `clip_mask`.
            top_k: number of moments to return for each sample; all unless given.
        """
        return read_moments(outputs, self.options.clip_length, top_k)


def read_moments(
    outputs: HfLamFusionMomentOutput | Mapping[str, Tensor], clip_length: float, top_k: int | None = None
) -> list[Retrieved]:
    """Convert outputs of a model to seconds: for every sample, windows within the video, the likeliest first.

    Args:
        outputs: outputs of the model, with `logits`, `pred_spans`, `saliency_scores` and `clip_mask`, which is 1 where
            there is a clip.
        clip_length: seconds of a clip.
        top_k: number of moments to return for each sample; all unless given.
    """
    clips = outputs["clip_mask"] == 1
    seconds = clips.sum(1) * clip_length
    windows = windows_of(outputs["pred_spans"].float()).clamp(0, 1) * seconds[:, None, None]
    probabilities = outputs["logits"].float().softmax(-1)[..., FOREGROUND]
    order = probabilities.argsort(dim=1, descending=True, stable=True)[:, :top_k]
    found = []
    for sample, queries in enumerate(order.tolist()):
        moments = []
        for query in queries:
            start, end = windows[sample, query].tolist()
            moments.append(Moment(start, end, probabilities[sample, query].item()))
        found.append(Retrieved(moments, outputs["saliency_scores"][sample][clips[sample]]))
    return found

# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Heads on the fusion model, without mechanisms: classes of samples, labels of tokens, embeddings.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, normalize
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import can_return_tuple

from .fusion_model_hf_lam import FusionModel, FusionPreTrainedModel, HfLamFusionModelOutput, is_sharded
from .hosts_facts_hf_lam import count_first_tokens


def takes_inputs(forward: Any) -> Any:
    """Let a head's `forward` show the arguments that it hands on to the fusion model's, which are listed there alone.

    forward: `(self, *args, own=…, **kwargs)`.
    """
    own = [p for p in inspect.signature(forward).parameters.values() if p.kind is p.KEYWORD_ONLY]
    *inputs, others = inspect.signature(FusionModel.forward).parameters.values()
    forward.__signature__ = inspect.Signature([*inputs, *own, others])
    return forward


class FusionForSequenceClassification(FusionPreTrainedModel):
    """A fusion model with a linear layer on its pooled output."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.fusion = FusionModel(config)
        self.dropout = nn.Dropout(_dropout_of(config))
        self.classifier = nn.Linear(self.fusion.pooled_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    @takes_inputs
    def forward(self, *args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> SequenceClassifierOutput:
        """Run the model with the arguments of [`FusionModel.forward`], and compute the loss.

        Args:
            labels: `(B,)` classes, `(B, num_labels)` of zeros and ones for several labels, or `(B,)` or
                `(B, num_labels)` numbers for regression: what `config.problem_type` says, or else what their dtype and
                `config.num_labels` say.
            args: see [`FusionModel.forward`].
            kwargs: likewise.
        """
        outputs = self.fusion(*args, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def _dropout_of(config: Any) -> float:
    dropout = config.classifier_dropout
    return config.hidden_dropout_prob if dropout is None else dropout


# --- labels of tokens ------------------------------------------------------------------------------------------------


class TokensInStep:
    """A head on the tokens at one place of modalities that lie in step.

    The tokens of all the labelled modalities that a sample has there are combined as `config.combine` says: their
    mean, or one after the other with zeros for those that are not there.

    label_modalities: those that are labelled; see the configuration.
    """

    config: Any
    fusion: FusionModel
    label_modalities: list[str]

    @property
    def step_size(self) -> int:
        """Features of a place."""
        parts = len(self.label_modalities) if self.config.combine == "concat" else 1
        return parts * self.config.hidden_size

    def in_step(self, outputs: HfLamFusionModelOutput) -> tuple[torch.Tensor, torch.Tensor]:
        """The states at each place, `(B, L, d)` or `(B, L, m · d)`, and whether there are any, `(B, L)` bool.

        outputs: output of the fusion model with `output_modality_states=True`.

        Raises:
            ValueError: if the labelled modalities differ in length.
        """
        assert outputs.modality_states is not None and outputs.token_mask is not None
        states = outputs.modality_states
        masks = outputs.token_mask.bool().split([state.shape[1] for state in states.values()], dim=1)
        mask_of = dict(zip(states, masks, strict=True))
        places = {
            name: self._places(name, states[name], mask_of[name]) for name in self.label_modalities if name in states
        }
        if not places:
            # Of the same width as others, and in the graph, for processes that have none while others do.
            parts = self.step_size // self.config.hidden_size
            nothing = next(iter(states.values()))[:, :0].repeat(1, 1, parts)
            return nothing, nothing.new_zeros(nothing.shape[:2], dtype=torch.bool)
        lengths = {name: mask.shape[1] for name, (_, mask) in places.items()}
        if any(length != next(iter(lengths.values())) for length in lengths.values()):
            raise ValueError(
                f"modalities that are labelled together must have one length in a batch, got {lengths}. Pad them "
                "alike, or name in label_modalities those that lie in step."
            )
        present = {name: state.masked_fill(~mask.unsqueeze(-1), 0) for name, (state, mask) in places.items()}
        number: Any = sum(mask.long() for _, mask in places.values())
        if self.config.combine == "concat":
            zeros = torch.zeros_like(next(iter(present.values())))
            return torch.cat([present.get(name, zeros) for name in self.label_modalities], dim=-1), number > 0
        total: Any = sum(present.values())
        return total / number.clamp(min=1).unsqueeze(-1).to(total), number > 0

    def _places(self, name: str, state: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of one modality that have labels, and which of them are there."""
        if name == "text":
            return state, mask
        if name in (self.config.features or ()):
            first = self.fusion.class_tokens[name]
        else:
            first = count_first_tokens(self.fusion.modality_model(name))
        # With padding on the left, they are not those at 0.
        return state[:, first:], (mask & (mask.long().cumsum(1) > first))[:, first:]


class FusionForTokenClassification(TokensInStep, FusionPreTrainedModel):
    """A fusion model with a linear layer on what is at each place of modalities that lie in step."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.label_modalities: list[str] = config.labelled_modalities
        self.fusion = FusionModel(config)
        self.dropout = nn.Dropout(_dropout_of(config))
        self.classifier = nn.Linear(self.step_size, config.num_labels)
        self.loss_function = token_loss
        self.post_init()

    @can_return_tuple
    @takes_inputs
    def forward(self, *args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> TokenClassifierOutput:
        """Run the model with the arguments of [`FusionModel.forward`]; logits are `(B, L, num_labels)`.

        `L` is the length of the labelled modalities in this batch, padding included. A text has logits for all of its
        tokens, as in other models; class tokens of features, and what encoders put before their grid, have none. A
        batch without any of the labelled modalities has no places, and a loss of 0.

        Args:
            labels: `(B, L)` classes, `(B, L, num_labels)` of zeros and ones for several labels, or `(B, L)` or
                `(B, L, num_labels)` numbers for regression: what `config.problem_type` says, or else what their dtype
                and `config.num_labels` say. -100 among whole numbers, and NaN among others, is no label. The loss is
                the mean over the labels at places where the sample has a token.
            args: see [`FusionModel.forward`].
            kwargs: likewise; and `num_items_in_batch`, of how many labels the loss is a share.

        Raises:
            ValueError: if the labelled modalities or the labels differ in length.
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.fusion(*args, return_dict=True, output_modality_states=True, **kwargs)
        hidden_states, is_there = self.in_step(outputs)
        logits = self.classifier(self.dropout(hidden_states))
        loss = None
        if labels is not None:
            if labels.dim() not in (2, 3) or labels.shape[:2] != logits.shape[:2]:
                raise ValueError(
                    f"labels must be of shape {tuple(logits.shape[:2])}, one for each place of "
                    f"{', '.join(self.label_modalities)}, or one more axis of {self.num_labels}; got "
                    f"{tuple(labels.shape)}."
                )
            none = float("nan") if labels.is_floating_point() else -100
            lacks = ~is_there if labels.dim() == 2 else ~is_there.unsqueeze(-1)
            loss = self.loss_function(
                logits=logits,
                labels=labels.masked_fill(lacks, none),
                config=self.config,
                num_items_in_batch=num_items_in_batch,
            )
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: Any,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """The mean loss over the labels that there are, or their share of a larger batch; 0 if there are none.

    Args:
        logits: `(B, L, num_labels)`.
        labels: `(B, L)` or `(B, L, num_labels)`; -100 or NaN where there is none.
        config: configuration of the model. Without a `problem_type`, it gets the one that the labels imply, as in
            transformers.
        num_items_in_batch: the number of labels in all batches that a step is made of.
        kwargs: not used.
    """
    if not labels.shape[1]:
        return logits.float().sum()  # of nothing, 0; labels of no place say nothing of the problem
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        else:
            is_multi_label = labels.is_floating_point()
            config.problem_type = f"{'multi' if is_multi_label else 'single'}_label_classification"
    logits = logits.float()
    is_known = ~labels.isnan() if labels.is_floating_point() else labels != -100
    labels = labels.masked_fill(~is_known, 0)
    if config.problem_type == "single_label_classification":
        losses = cross_entropy(logits.transpose(1, 2), labels.long(), reduction="none")
    else:
        function = mse_loss if config.problem_type == "regression" else binary_cross_entropy_with_logits
        losses = function(logits, labels.view(logits.shape).to(logits), reduction="none").view(labels.shape)
    items = is_known.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return losses.masked_fill(~is_known, 0).sum() / items


# --- embeddings ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class HfLamFusionEmbeddingOutput(ModelOutput):
    """The output of an embedding model, like `CLIPOutput` with the two sides of `config.contrast` for text and image.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, with `return_loss=True`):
            The contrastive loss.
        logits_per_first (`torch.FloatTensor` of shape `(first_batch_size, second_batch_size)`):
            The scaled similarities of the first side to the second.
        logits_per_second (`torch.FloatTensor` of shape `(second_batch_size, first_batch_size)`):
            The same of the second side to the first.
        first_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            The embeddings of the first side, of length 1; zeros for samples that lack it.
        second_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            The embeddings of the second side.
        first_model_output (`HfLamFusionModelOutput`):
            The output of the fusion model for the first side; None for a batch without it.
        second_model_output (`HfLamFusionModelOutput`):
            What it gave for the second.
    """

    loss: torch.Tensor | None = None
    logits_per_first: torch.Tensor | None = None
    logits_per_second: torch.Tensor | None = None
    first_embeds: torch.Tensor | None = None
    second_embeds: torch.Tensor | None = None
    first_model_output: HfLamFusionModelOutput | None = None
    second_model_output: HfLamFusionModelOutput | None = None


class Side(NamedTuple):
    """One side of a batch.

    output: output of the fusion model; None for a batch without this side.
    embeds: `(B, projection_dim)`, zeros for samples that lack it; of one sample for a batch without this side.
    is_present: likewise `(B,)` bool, which samples have it.
    """

    output: HfLamFusionModelOutput | None
    embeds: torch.Tensor
    is_present: torch.Tensor


class FusionForEmbedding(FusionPreTrainedModel):
    """A fusion model that gives one vector for a sample, whichever modalities it has.

    sides: the modalities that the loss compares with each other; see `contrast` of the configuration.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.sides: tuple[list[str], list[str]] = config.contrasted_modalities
        self.fusion = FusionModel(config)
        self.projection = nn.Linear(self.fusion.pooled_size, config.projection_dim, bias=False)
        # With an axis, because FSDP cannot shard a scalar.
        self.logit_scale = nn.Parameter(torch.full((1,), float(config.logit_scale_init_value)))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FusionForEmbedding):
            init.constant_(module.logit_scale, float(self.config.logit_scale_init_value))

    @takes_inputs
    def get_embeddings(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One vector of length 1 for each sample, `(B, projection_dim)`, from all modalities that are given.

        Args:
            args: see [`FusionModel.forward`].
            kwargs: likewise.
        """
        return self._project(self.fusion(*args, **{**kwargs, "return_dict": True}).pooler_output)

    @can_return_tuple
    @takes_inputs
    def forward(self, *args: Any, return_loss: bool = True, **kwargs: Any) -> HfLamFusionEmbeddingOutput:
        """Both sides of the batch on their own, and how similar they are. For one vector a sample: `get_embeddings`.

        The loss is that of CLIP: the cross entropy of every sample of the first side with its own of the second, among
        all of the batch, and the other way round. Samples that lack a side do not count, neither as a pair nor for
        others to be told from; where no sample has both, the loss is 0. Each process of a parallel training compares
        the samples of its own batch, as in transformers, and each batch of an accumulated one is on its own.

        Args:
            return_loss: whether to compute it. There is none for a model with one modality.
            args: see [`FusionModel.forward`]. Modalities that are on no side are left out.
            kwargs: likewise; `output_attentions` and the like are about both sides' outputs.

        Raises:
            ValueError: with `return_loss`, if the two sides differ in batch size.
        """
        names = list(inspect.signature(self.fusion.forward).parameters)
        options = {**dict(zip(names, args, strict=False)), **kwargs}
        inputs = {
            name: {key: value for key in self._arguments(name) if (value := options.pop(key, None)) is not None}
            for name in self.config.modalities
        }
        given = [
            {name: inputs[name] for name in side if inputs[name] and not self._is_empty(name, inputs[name])}
            for side in self.sides
        ]
        if not any(given):
            raise ValueError(
                f"no modality was given of those that are compared, {self.sides[0]} with {self.sides[1]}; "
                "get_embeddings takes any that the model has."
            )
        device = next(tensor for side in given for has in side.values() for tensor in has.values()).device
        sides = [
            self._embed(side, options) if side else self._lacking(names, device)
            for side, names in zip(given, self.sides, strict=True)
        ]
        whole = next(side.embeds for side in sides if side.output is not None)
        # A batch without a side is one of samples that lack it.
        first, second = (
            side
            if side.output is not None
            else Side(None, side.embeds.to(whole).expand_as(whole), side.is_present.expand(len(whole)))
            for side in sides
        )
        logits = self.logit_scale.exp() * first.embeds @ second.embeds.T
        loss = None
        if return_loss and self.sides[1]:
            if first.embeds.shape[0] != second.embeds.shape[0]:
                raise ValueError(
                    f"the sides have {first.embeds.shape[0]} and {second.embeds.shape[0]} samples; for a loss, each "
                    "sample needs both. Give return_loss=False for similarities alone."
                )
            loss = contrastive_loss(logits, first.is_present & second.is_present)
        return HfLamFusionEmbeddingOutput(
            loss=loss,
            logits_per_first=logits,
            logits_per_second=logits.T,
            first_embeds=first.embeds,
            second_embeds=second.embeds,
            first_model_output=first.output,
            second_model_output=second.output,
        )

    def _arguments(self, name: str) -> tuple[str, ...]:
        return (*self.config.modality_arguments(name).names, f"has_{name}")

    def _embed(self, side: Mapping[str, Mapping[str, torch.Tensor]], options: Mapping[str, Any]) -> Side:
        """One side of a batch, some of whose modalities the batch has."""
        inputs, is_present = self._fill(side)
        output = self.fusion(**inputs, **options, return_dict=True)
        embeds = self._project(output.pooler_output)
        if is_present is None:
            return Side(output, embeds, embeds.new_ones(embeds.shape[0], dtype=torch.bool))
        return Side(output, embeds.masked_fill(~is_present.unsqueeze(-1), 0), is_present)

    def _lacking(self, names: Sequence[str], device: torch.device) -> Side:
        """A side that the batch lacks, as one sample; it is run on nothing where other processes may have it."""
        weight = self.projection.weight
        embeds = torch.zeros(1, weight.shape[0], dtype=weight.dtype, device=device)
        if names and is_sharded(self.fusion):
            blank = {self.config.modality_arguments(names[0]).values: self.fusion.blank_values(names[0], device)}
            output = self._project(self.fusion(**blank, return_dict=True).pooler_output)
            embeds = output.masked_fill(torch.ones_like(output, dtype=torch.bool), 0)
        return Side(None, embeds, torch.zeros(1, dtype=torch.bool, device=device))

    def _is_empty(self, name: str, arguments: Mapping[str, torch.Tensor]) -> bool:
        """Whether vectors were given of which no sample has any."""
        values = arguments.get(self.config.modality_arguments(name).values)
        return name in (self.config.features or ()) and values is not None and values.shape[1:2] == (0,)

    def _project(self, pooled: torch.Tensor) -> torch.Tensor:
        # In single precision, where the length of a vector is no small number.
        return normalize(self.projection(pooled).float(), dim=-1).to(pooled.dtype)

    def _fill(
        self, side: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """The inputs of a side with blank ones for the samples that lack it, and which samples have it; None for all.

        The fusion model wants every sample to have a modality, and in a side alone it may have none.
        """
        inputs = {key: value for arguments in side.values() for key, value in arguments.items()}
        present: dict[str, torch.Tensor] = {}
        for name in side:
            has = self.config.modality_arguments(name)
            values, mask, flags = (inputs.get(key) if key else None for key in (has.values, has.mask, f"has_{name}"))
            if values is None or (mask is None and flags is None):
                return inputs, None  # all samples have it; or the fusion model says what is missing
            present[name] = values.new_ones(values.shape[0], dtype=torch.bool) if flags is None else flags.bool()
            if mask is not None:
                present[name] = present[name] & mask.bool().any(1)
        name = next(iter(side))
        if any(flags.shape != present[name].shape for flags in present.values()):
            return inputs, None  # likewise
        is_present = torch.stack([*present.values()]).any(0)
        has = self.config.modality_arguments(name)
        for key in has.names:
            if key in inputs:
                value = inputs[key]
                lacks = ~is_present.view(-1, *(1 for _ in value.shape[1:]))
                inputs[key] = value.masked_fill(lacks, 1 if key == has.mask else 0)
        inputs[f"has_{name}"] = present[name] | ~is_present
        return inputs, is_present


def contrastive_loss(logits: torch.Tensor, is_pair: torch.Tensor) -> torch.Tensor:
    """The mean of the cross entropies along both axes, over the pairs, of each with its own on the diagonal.

    Args:
        logits: `(B, B)`.
        is_pair: `(B,)` bool, which samples have both sides; the others are in neither row nor column.
    """
    own = torch.eye(logits.shape[0], dtype=torch.bool, device=logits.device)
    # Of what is no pair the diagonal stays, so that no row is empty.
    logits = logits.float().masked_fill(~(is_pair[None, :] & is_pair[:, None] | own), float("-inf"))
    targets = torch.arange(logits.shape[0], device=logits.device)
    losses = cross_entropy(logits, targets, reduction="none") + cross_entropy(logits.T, targets, reduction="none")
    return losses.masked_fill(~is_pair, 0).sum() / (2 * is_pair.sum().clamp(min=1))

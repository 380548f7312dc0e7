# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Heads on the fusion model, without mechanisms.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from .fusion_model_hf_lam import FusionModel, FusionPreTrainedModel


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
        image_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        video_values: torch.Tensor | None = None,
        audio_values: torch.Tensor | None = None,
        audio_mask: torch.Tensor | None = None,
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
            input_ids, attention_mask, token_type_ids, pixel_values, image_mask, spatial_shapes, video_values,
                audio_values, audio_mask, has_text, has_image, has_video, has_audio, kwargs: see
                [`FusionModel.forward`].
        """
        outputs = self.fusion(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            image_mask=image_mask,
            spatial_shapes=spatial_shapes,
            video_values=video_values,
            audio_values=audio_values,
            audio_mask=audio_mask,
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

# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Encoders of sound in a fusion model: every sound is encoded as it is alone, however far its batch is padded.

Stock encoders see padding. Whisper takes thirty seconds and no mask; the first norm of wav2vec 2.0 is over time, and
data2vec's convolutions of positions spread what stands behind a sound.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from .hosts_facts_hf_lam import FRAMES_PER_TOKEN, count_samples, count_sound_tokens


class Waveforms(NamedTuple):
    """Plain sounds of a batch.

    values: `(B, samples)`.
    lengths: `(B,)`, samples of each, which stand first.
    """

    values: torch.Tensor
    lengths: torch.Tensor


def align_left(values: torch.Tensor, mask: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Move sounds to the beginning of their rows, with zeros behind, and return them with their lengths, `(B,)`.

    A sound lasts from the first to the last place where its mask is 1.

    Args:
        values: `(B, …)`.
        mask: `(B, T)`, 1 where there is sound.
        dim: dimension of time in the values.
    """
    places, mask = torch.arange(mask.shape[1], device=mask.device), mask.int()
    first = mask.argmax(1)
    lengths = mask.shape[1] - mask.flip(1).argmax(1) - first
    others = [1] * (values.dim() - 2)
    index = ((places + first[:, None]) % mask.shape[1]).view(mask.shape[0], *_put(mask.shape[1], others, dim))
    values = values.gather(dim, index.expand_as(values))
    is_there = (places < lengths[:, None]).view(mask.shape[0], *_put(mask.shape[1], others, dim))
    return values.masked_fill(~is_there, 0), lengths


def _put(length: int, others: list[int], dim: int) -> list[int]:
    """A shape without the batch, with a length at one dimension."""
    return [*others[: dim - 1], length, *others[dim - 1 :]]


def count_up(lengths: torch.Tensor, length: int) -> torch.Tensor:
    """`(B, length)` bool, the first places of each row."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]


# --- plain sound -----------------------------------------------------------------------------------------------------


def prepare_waveforms(encoder: Any) -> None:
    """Let an encoder of plain sound leave padding out where its own modules do not; its weights keep their names."""
    encoder.feature_extractor = SoundConvolutions(encoder.feature_extractor)
    positions = encoder.encoder.pos_conv_embed
    if isinstance(getattr(positions, "layers", None), nn.ModuleList):
        encoder.encoder.pos_conv_embed = SoundPositions(positions.layers)


def run_waveforms(
    encoder: Any, values: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The tokens of plain sounds, `(B, L, width)`, and which of them count, `(B, L)`; None if all do.

    A sound that is too short for one token is treated as if zeros followed it.

    Args:
        encoder: encoder that `prepare_waveforms` prepared.
        values: plain sound, `(B, samples)`.
        mask: `(B, samples)`, 1 where there is sound; None if there is everywhere.
    """
    shortest = count_samples(encoder.config, 1)
    lengths = None
    if mask is not None:
        values, lengths = align_left(values, mask, dim=1)
        lengths = lengths.clamp(min=shortest)
    if values.shape[1] < shortest:
        values = nn.functional.pad(values, (0, shortest - values.shape[1]))
    if lengths is None:
        return encoder(values, return_dict=True).last_hidden_state, None
    hidden_states = encoder(
        Waveforms(values, lengths), attention_mask=count_up(lengths, values.shape[1]).long(), return_dict=True
    ).last_hidden_state
    tokens: Any = count_sound_tokens(encoder.config, lengths)  # type: ignore[arg-type]
    return hidden_states, count_up(tokens, hidden_states.shape[1])


class SoundConvolutions(nn.Module):
    """The convolutions of an encoder of plain sound, over each sound by itself."""

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(
            NormedConvolution(layer) if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm) else layer
            for layer in extractor.conv_layers
        )

    def forward(self, sounds: torch.Tensor | Waveforms) -> torch.Tensor:
        """`(B, channels, tokens)` of `(B, samples)`."""
        values, lengths = sounds if isinstance(sounds, tuple) else (sounds, None)
        hidden_states = values[:, None]
        first: Any = self.conv_layers[0]
        if self.training and first.gradient_checkpointing and first.conv.weight.requires_grad:
            # Re-entrant checkpointing gives gradients only where an input has one.
            hidden_states.requires_grad_(True)
        for layer in self.conv_layers:
            if isinstance(layer, NormedConvolution):
                hidden_states = layer(hidden_states, lengths)
            else:
                hidden_states = layer(hidden_states)
        return hidden_states

    def _freeze_parameters(self) -> None:
        # By this name `freeze_feature_encoder` of the encoder calls it.
        self.requires_grad_(False)


class NormedConvolution(GradientCheckpointingLayer):
    """A convolution of plain sound whose channels are normalised over time: over that of each sound.

    layer: the encoder's own, the first of all.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.conv, self.activation, self.layer_norm = layer.conv, layer.activation, layer.layer_norm

    def forward(self, hidden_states: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, channels, frames)` of `(B, 1, samples)`.

        lengths: `(B,)`, samples of each sound; None for all.
        """
        hidden_states = self.conv(hidden_states)
        if lengths is None:
            return self.activation(self.layer_norm(hidden_states))
        frames = (lengths - self.conv.kernel_size[0]) // self.conv.stride[0] + 1
        is_there = count_up(frames, hidden_states.shape[2])[:, None]
        return self.activation(self._normalise(hidden_states, is_there, frames))

    def _normalise(self, hidden_states: torch.Tensor, is_there: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        norm = self.layer_norm
        # A group for each channel, as everywhere: the statistics are over time alone. In float32, as in the norm.
        x = hidden_states.float().masked_fill(~is_there, 0)
        count = frames[:, None, None]
        centred = (x - x.sum(2, keepdim=True) / count).masked_fill(~is_there, 0)
        variance = centred.square().sum(2, keepdim=True) / count
        scaled = (centred * (variance + norm.eps).rsqrt()).to(hidden_states.dtype)
        return scaled * norm.weight[:, None] + norm.bias[:, None]


class SoundPositions(nn.Module):
    """Convolutions of positions, one after another, none of which spreads what stands behind a sound (data2vec)."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, L, width)` of the same shape, where the encoder has put zeros behind each sound."""
        is_there = (hidden_states != 0).any(2)[:, None]
        hidden_states = hidden_states.transpose(1, 2)
        for layer in self.layers:
            hidden_states = layer(hidden_states).masked_fill(~is_there, 0)
        return hidden_states.transpose(1, 2)


# --- a window of thirty seconds --------------------------------------------------------------------------------------


def run_window(
    encoder: Any, values: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The tokens of Whisper's encoder, `(B, L, width)`, and which of them count, `(B, L)`; None if all do.

    A sound of the encoder's own length without a mask is what it is in Whisper. A shorter one, or one that the mask
    cuts, gets what an encoder for sounds of just that length makes of it, with the first positions of this one.

    Args:
        encoder: encoder of the class `WhisperEncoder`.
        values: spectrograms, `(B, mel bins, frames)`.
        mask: `(B, frames)`, 1 where there is sound; None if there is everywhere.
    """
    lengths = frames = None
    if mask is not None:
        values, lengths = align_left(values, mask, dim=2)
        frames = count_up(lengths, values.shape[2])[:, None]
    hidden_states = nn.functional.gelu(encoder.conv1(values))
    if frames is not None:
        hidden_states = hidden_states.masked_fill(~frames, 0)
    hidden_states = nn.functional.gelu(encoder.conv2(hidden_states)).transpose(1, 2)
    positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    hidden_states = hidden_states + encoder.embed_positions(positions)
    hidden_states = nn.functional.dropout(hidden_states, encoder.dropout, encoder.training)
    token_mask = None
    if lengths is not None:
        token_mask = count_up((lengths + 1) // FRAMES_PER_TOKEN, hidden_states.shape[1])
    attention_mask = create_bidirectional_mask(
        config=encoder.config, inputs_embeds=hidden_states, attention_mask=token_mask
    )
    for layer in encoder.layers:
        if not (encoder.training and encoder.layerdrop > 0 and torch.rand([]) < encoder.layerdrop):
            hidden_states = layer(hidden_states, attention_mask)
    return encoder.layer_norm(hidden_states), token_mask

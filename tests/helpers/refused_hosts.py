"""Models of transformers that cannot carry mechanisms, tiny, and the words with which they are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helpers.families import SIZES, VOCABULARY, find_class, image, randomize, text

_TEXT = {**SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": 40, "pad_token_id": 1}
_VISION = {**SIZES, "image_size": 16, "patch_size": 4}


@dataclass(frozen=True)
class RefusedHost:
    """A row of the second table.

    title: what people call it.
    model: its class.
    config: the class of its configuration.
    options: of a tiny one.
    reason: words of the error, which the table says.
    inputs: for it.
    instead: what can be used, where there is something.
    """

    title: str
    model: str
    config: str
    options: dict[str, Any]
    reason: str
    inputs: Callable[[], dict[str, Tensor]] = text
    instead: str = ""

    def make(self) -> Any:
        torch.default_generator.manual_seed(0)
        return randomize(find_class(self.model, self.config)(find_class(self.config)(**self.options)))


def _both(**more: Tensor) -> dict[str, Tensor]:
    return {**text(), **image(), **more}


def _two_texts() -> dict[str, Tensor]:
    return {**text(), "decoder_input_ids": text()["input_ids"]}


def _speech() -> dict[str, Tensor]:
    values = torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(1))
    return {"input_features": values, "decoder_input_ids": torch.tensor([[2, 5, 6]] * 2)}


_T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
_BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37, "max_position_embeddings": 40,
    "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2, "forced_eos_token_id": 3,
}  # fmt: skip
_WHISPER = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 37,
    "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 32, "num_mel_bins": 16,
    "max_source_positions": 20, "max_target_positions": 8, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
    "decoder_start_token_id": 2,
}  # fmt: skip
_DEBERTA = {"relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"]}
_TOWERS = {"text_config": _TEXT, "vision_config": _VISION}

_OWN = "computes its attention itself"
_DECODER = "has an encoder and a decoder"
_TWO = "consists of several encoders"

REFUSED: dict[str, RefusedHost] = {
    "mpnet": RefusedHost("MPNet", "MPNetModel", "MPNetConfig", _TEXT, _OWN),
    "deberta_v2": RefusedHost(
        "DeBERTa-v2 and -v3", "DebertaV2Model", "DebertaV2Config", {**_TEXT, **_DEBERTA}, _OWN
    ),
    "albert": RefusedHost(
        "ALBERT", "AlbertModel", "AlbertConfig", {**_TEXT, "embedding_size": 16}, "its layers share their weights",
    ),
    "roformer": RefusedHost("RoFormer", "RoFormerModel", "RoFormerConfig", _TEXT, _OWN),
    "longformer": RefusedHost(
        "Longformer", "LongformerModel", "LongformerConfig", {**_TEXT, "attention_window": 4}, _OWN
    ),
    "xlnet": RefusedHost(
        "XLNet", "XLNetModel", "XLNetConfig",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 37}, _OWN,
    ),
    "t5_encoder": RefusedHost(
        "T5's encoder", "T5EncoderModel", "T5Config", _T5, "does not say where its self-attention is"
    ),
    "t5": RefusedHost("T5", "T5Model", "T5Config", _T5, _DECODER, _two_texts),
    "bart": RefusedHost(
        "BART", "BartModel", "BartConfig", _BART, _DECODER, _two_texts, "`model.get_encoder()`"
    ),
    "whisper": RefusedHost(
        "Whisper, whole", "WhisperModel", "WhisperConfig", _WHISPER, _DECODER, _speech,
        "`model.get_encoder()`",
    ),
    "gpt2": RefusedHost(
        "GPT-2 and other decoders", "GPT2Model", "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40},
        "is a causal decoder with a cache",
    ),
    "clip": RefusedHost(
        "CLIP, whole", "CLIPModel", "CLIPConfig", {**_TOWERS, "projection_dim": 16}, _TWO, _both,
        "`model.vision_model`, `model.text_model`",
    ),
    "siglip": RefusedHost(
        "SigLIP, whole", "SiglipModel", "SiglipConfig", _TOWERS, _TWO, _both,
        "`model.vision_model`, `model.text_model`",
    ),
    "swin": RefusedHost(
        "Swin", "SwinModel", "SwinConfig",
        {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        "attends inside windows of the image", image,
    ),
    "hiera": RefusedHost(
        "Hiera", "HieraModel", "HieraConfig",
        {
            "image_size": [32, 32], "patch_size": [7, 7], "embed_dim": 16, "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 1, 1],
        },
        "consists of stages of different width and length", lambda: {"pixel_values": torch.ones(2, 3, 32, 32)},
    ),
    "timesformer": RefusedHost(
        "TimeSformer", "TimesformerModel", "TimesformerConfig", {**_VISION, "num_frames": 4}, _OWN,
        lambda: {"pixel_values": torch.ones(2, 4, 3, 16, 16)},
    ),
    "wavlm": RefusedHost(
        "WavLM", "WavLMModel", "WavLMConfig",
        {
            **SIZES, "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 4),
            "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
        },
        _OWN, lambda: {"input_values": torch.randn(2, 400, generator=torch.Generator().manual_seed(1))},
    ),
}  # fmt: skip

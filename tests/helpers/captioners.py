"""Tiny models that write the names of digits letter by letter, and the pictures that they see."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderModel,
    ViTModel,
)

import hf_lam
from helpers.hosts import make_model, perturb_mechanisms
from hf_lam import LamConfig, SttConfig
from hf_lam.modeling.injection_hf_lam import injected_encoders, mechanism_of

PAD, START, END = 0, 1, 2
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LETTERS = sorted(set("".join(WORDS)))
MECHANISMS: dict[str, Any] = {
    "dense": SttConfig(variant="dense"),
    "mixture": SttConfig(synthesizer="random"),
    "lam": LamConfig(),
}


def letters_of(word: str) -> list[int]:
    return [3 + LETTERS.index(letter) for letter in word] + [END]


def make_data(count: int = 10) -> dict[str, torch.Tensor]:
    """The first images of handwritten digits, at 16 × 16 in three channels, and their words letter by letter."""
    digits = load_digits()
    images = torch.tensor(digits.images[:count], dtype=torch.float32) / 8 - 1
    images = torch.nn.functional.interpolate(images[:, None], size=16, mode="bilinear").expand(-1, 3, -1, -1)
    captions = [letters_of(WORDS[target]) for target in digits.target[:count]]
    labels = torch.tensor([caption + [-100] * (6 - len(caption)) for caption in captions])
    return {"pixel_values": images.contiguous(), "labels": labels}


def make_decoder(kind: str) -> Any:
    torch.manual_seed(1)
    common = {"vocab_size": 3 + len(LETTERS), "add_cross_attention": True, "initializer_range": 0.1}
    if kind == "bert":
        return BertLMHeadModel(
            BertConfig(
                **common,
                is_decoder=True,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=16,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": START, "eos_token_id": END}
    return GPT2LMHeadModel(GPT2Config(**common, **dropouts, **ends, n_embd=32, n_layer=1, n_head=4, n_positions=16))


def with_tokens(model: Any) -> Any:
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.decoder_start_token_id, config.eos_token_id = PAD, START, END
    return model


def make_captioner(mechanism: str, decoder: str, seed: int = 0) -> Any:
    encoder = make_model(ViTModel, "vit", seed=seed, initializer_range=0.1, num_hidden_layers=2)
    encoder = hf_lam.convert(encoder, MECHANISMS[mechanism])
    perturb_mechanisms(encoder)
    if mechanism == "mixture":
        set_mixing(encoder, 0.5)
    return with_tokens(VisionEncoderDecoderModel(encoder=encoder, decoder=make_decoder(decoder))).eval()


def set_mixing(model: torch.nn.Module, value: float) -> None:
    (base,) = injected_encoders(model)
    for synthesizer in mechanism_of(base, "stt"):
        synthesizer.mixing.data.fill_(value)


def logits(model: Any, data: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**data).logits


def generated(model: Any, data: dict[str, torch.Tensor], beams: int = 1) -> list[str]:
    tokens = model.generate(pixel_values=data["pixel_values"], max_length=8, num_beams=beams, do_sample=False)
    return ["".join(LETTERS[token - 3] for token in row if token >= 3) for row in tokens.tolist()]


def words_of(data: dict[str, torch.Tensor]) -> list[str]:
    return ["".join(LETTERS[token - 3] for token in row if token >= 3) for row in data["labels"].tolist()]

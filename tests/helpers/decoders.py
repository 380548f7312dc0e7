"""Small decoders of transformers with cross-attention, and what their cross-attention reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

SIZE, VOCABULARY = 32, 50
# What transformers calls the key-value cache, until 5.23 and since.
CACHE = "cache" if "cache" in inspect.signature(transformers.BertModel.forward).parameters else "past_key_values"

_BERT = {
    "hidden_size": SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "is_decoder": True,
    "add_cross_attention": True,
}
# Encoders that differ from their decoders, of which the decoder must not be told by.
_BART = {
    "d_model": SIZE,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "is_decoder": True,
}
_GPT2 = {
    "n_embd": SIZE,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "is_decoder": True,
    "add_cross_attention": True,
}

# Name: the class without its head's ending, the head's class, and options.
DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "LMHeadModel", _BERT),
    "roberta": ("Roberta", "ForCausalLM", _BERT),
    "xlm-roberta-xl": ("XLMRobertaXL", "ForCausalLM", _BERT),
    "electra": ("Electra", "ForCausalLM", {**_BERT, "embedding_size": SIZE}),
    "bert-generation": ("BertGeneration", "Decoder", _BERT),
    "gpt2": ("GPT2", "LMHeadModel", _GPT2),
    "bart": ("Bart", "ForCausalLM", _BART),
    "mbart": ("MBart", "ForCausalLM", _BART),
    "marian": ("Marian", "ForCausalLM", _BART),
    "pegasus": ("Pegasus", "ForCausalLM", _BART),
    "blenderbot": ("Blenderbot", "ForCausalLM", _BART),
}
# Those that compute their attention themselves.
UNREACHABLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "trocr": ("TrOCR", "ForCausalLM", {**_BART, "decoder_layers": 2}),
    "mvp": ("Mvp", "ForCausalLM", _BART),
    "rembert": ("RemBert", "ForCausalLM", _BERT),
    "big_bird": ("BigBird", "ForCausalLM", {**_BERT, "attention_type": "original_full"}),
}


def make_decoder(name: str, **options: Any) -> Any:
    """A decoder with random weights that are large enough for its attention to matter."""
    family, head, own = {**DECODERS, **UNREACHABLE}[name]
    config = getattr(transformers, f"{family}Config")(**{**own, **options})
    model = getattr(transformers, f"{family}{head}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.12)
    return model


def make_inputs(batch: int = 3, queries: int = 5, keys: int = 7) -> dict[str, Tensor]:
    """Decoder tokens, and an encoder's, of which the second sample has fewer."""
    mask = torch.ones(batch, keys, dtype=torch.long)
    mask[1:2, 4:] = 0
    return {
        "input_ids": torch.randint(3, VOCABULARY, (batch, queries)),
        "encoder_hidden_states": torch.randn(batch, keys, SIZE),
        "encoder_attention_mask": mask,
    }


def shake(container: nn.Module) -> None:
    """Give masks that start as the identity something to say."""
    with torch.no_grad():
        for parameter in container.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)


def run_by_token(decoder: Any, inputs: dict[str, Any], between: Callable[[Any], None] = lambda cache: None) -> Tensor:
    """The logits of one token after the other, with the key-value cache.

    between: called with the cache after each token.
    """
    tokens, cache, logits = inputs["input_ids"], None, []
    for place in range(tokens.shape[1]):
        step = {**inputs, "input_ids": tokens[:, place : place + 1], CACHE: cache}
        output = decoder(**step, use_cache=True)
        cache = output[CACHE]
        between(cache)
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def make_captioning(decoder: PreTrainedModel) -> Any:
    """A small ViT with `decoder` on top, as `VisionEncoderDecoderModel` has it: the encoder's tokens are 5."""
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    model = transformers.VisionEncoderDecoderModel(encoder=transformers.ViTModel(config), decoder=decoder).eval()
    with torch.no_grad():
        model.enc_to_dec_proj.weight.normal_(std=0.5)
    model.config.decoder_start_token_id, model.config.pad_token_id = 2, 1
    model.generation_config.update(decoder_start_token_id=2, pad_token_id=1, bos_token_id=2, eos_token_id=VOCABULARY)
    return model

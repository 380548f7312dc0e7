"""Tiny decoders with cross-attention of every family that can be one of a fusion model."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING

from helpers.fusion_heads import END, PAD, START, WORDS

# The sizes under all the names that families have for them.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size"), 16),
    **dict.fromkeys(("input_embedding_size", "output_embedding_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "decoder_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "decoder_attention_heads", "attention_heads"), 2),
    **dict.fromkeys(("intermediate_size", "decoder_ffn_dim", "ffn_dim"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 32),
    **dict.fromkeys(("vocab_size", "pronunciation_vocab_size", "shape_vocab_size"), WORDS),
    **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim"), 8),
    **dict.fromkeys(("initializer_range", "init_std"), 0.1),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"), 0.0),
    **dict.fromkeys(("activation_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    **{"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD, "decoder_start_token_id": START},
    # Which some would write at the end of every text.
    "forced_eos_token_id": None,
    "default_language": "en_XX",
}
FAMILIES = (
    *("bert", "gpt2", "bart", "trocr", "xglm"),
    *("bert-generation", "bigbird_pegasus", "blenderbot", "blenderbot-small", "camembert", "data2vec-text", "electra"),
    *("ernie", "marian", "mbart", "mvp", "pegasus", "plbart", "rembert", "roberta", "roberta-prelayernorm"),
    *("roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
# What has cross-attention, and why it cannot be a decoder.
REFUSED = {
    "big_bird": "BigBirdForCausalLM, which has no cache",
    "gpt_bigcode": "GPTBigCodeForCausalLM, which takes no mask",
    "megatron-bert": "MegatronBertForCausalLM, which has cross-attention that needs",
    "musicgen": "MusicgenForCausalLM, which writes codes of sound",
    "musicgen_melody": "MusicgenMelodyForCausalLM, which writes codes of sound",
    "prophetnet": "ProphetNetForCausalLM, which predicts several words ahead",
}
# What has none, or is no decoder.
WITHOUT = {
    "llama": "LlamaForCausalLM, which has no cross-attention",
    "opt": "OPTForCausalLM, which has no cross-attention",
    "t5": "T5Config, of which transformers has no causal language model",
    "vit": "ViTConfig, of which transformers has no causal language model",
}


def family_config(family: str, **options: Any) -> Any:
    """The configuration of a tiny decoder."""
    kind = CONFIG_MAPPING[family]
    fields = {*kind.__dataclass_fields__} - {*kind.attribute_map}
    return kind(**{name: value for name, value in _SIZES.items() if name in fields}, **options)

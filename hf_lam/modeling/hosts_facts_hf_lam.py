# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""What we know about other people's encoders and cannot read off their modules: one table for each kind of fact.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class PrivateName(NamedTuple):
    """A private name of transformers that we rely on.

    where: the module, and after a colon the class, that has it or whose source uses it.
    why: what we need it for.
    """

    where: str
    name: str
    why: str


_MODEL = "transformers.modeling_utils:PreTrainedModel"
_CONFIG = "transformers.configuration_utils:PreTrainedConfig"
_TRAINER = "transformers.trainer:Trainer"

# A test looks for each at the lowest and at the newest version of transformers.
PRIVATE_NAMES = (
    PrivateName(_MODEL, "_can_record_outputs", "says which modules are the self-attention"),
    PrivateName(_MODEL, "_init_weights", "gives weights that a checkpoint lacks their values"),
    PrivateName(_MODEL, "_is_hf_initialized", "marks modules whose weights have their values"),
    PrivateName(_MODEL, "_adjust_missing_and_unexpected_keys", "reports what a checkpoint lacks"),
    PrivateName(_MODEL, "_no_split_modules", "says which modules stay whole when a model is spread"),
    PrivateName(_CONFIG, "_attn_implementation", "what the user asked for"),
    PrivateName(_CONFIG, "_attn_implementation_internal", "where attention modules look for their function"),
    PrivateName(_CONFIG, "_name_or_path", "where a model was loaded from"),
    PrivateName(
        "transformers.modeling_layers:GradientCheckpointingLayer",
        "_gradient_checkpointing_func",
        "runs a layer under gradient checkpointing",
    ),
    PrivateName(
        "transformers.utils.output_capturing", "_active_collector", "says whether attention weights are wanted"
    ),
    PrivateName(
        "transformers.tokenization_utils_base:PreTrainedTokenizerBase",
        "_set_processor_class",
        "notes the processor that a tokenizer is saved with",
    ),
    PrivateName(
        "transformers.integrations.peft:PeftAdapterMixin",
        "_hf_peft_config_loaded",
        "says whether only adapters would be saved",
    ),
    PrivateName(_TRAINER, "_save", "writes what a push must not publish"),
    PrivateName(_TRAINER, "_run_epoch", "runs one epoch"),
    PrivateName(_TRAINER, "_move_model_to_device", "puts a model where the trained one is"),
)


def is_fusion(config: Any) -> bool:
    """Whether this is the configuration of a fusion model, by whichever copy of this code."""
    return config.model_type == "hf_lam_fusion"


# --- attention -------------------------------------------------------------------------------------------------------

# What hosts call the projections of queries, keys and values.
PROJECTION_NAMES = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))


def _forward_videomae(
    attention: Any, hidden_states: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`VideoMAESelfAttention.forward` with keyword arguments.

    Its caller hands it some, and it takes none, up to transformers 5.24 at least; once it does, this can go.
    """
    shape = (*hidden_states.shape[:-1], -1, attention.attention_head_size)
    query, key, value = (
        projection(hidden_states).view(shape).transpose(1, 2)
        for projection in (attention.query, attention.key, attention.value)
    )
    dropout = attention.dropout_prob if attention.training else 0.0
    attend: Any = ALL_ATTENTION_FUNCTIONS["hf_lam"]
    context, weights = attend(attention, query, key, value, None, scaling=attention.scaling, dropout=dropout, **kwargs)
    return context.flatten(-2), weights


# By the class of an attention whose forward takes no keyword arguments: the same forward with them.
SHIMS = {"VideoMAESelfAttention": _forward_videomae}

# Hosts whose argument `bool_masked_pos` drops tokens, rather than replacing them.
_DROPPING = ("videomae", "hf_lam_videomae")


def drops_tokens(config: Any) -> bool:
    """Whether the host can be asked to drop tokens."""
    return config.model_type in _DROPPING


# --- tokens ----------------------------------------------------------------------------------------------------------


def read_grid(config: Any) -> tuple[tuple[int, ...], int]:
    """Axes of the grid of an encoder's tokens, empty for none, and frames of the input in a step of a video's."""
    if hasattr(config, "tubelet_size"):
        steps, patch = _tubelet(config)
        return (config.num_frames // steps, *_divide(_pair(config.image_size), patch)), steps
    if hasattr(config, "frequency_stride"):
        return _divide_spectrogram(config, config.max_length, config.num_mel_bins), 1
    if hasattr(config, "image_size") and hasattr(config, "patch_size"):
        return _divide(_pair(config.image_size), _pair(config.patch_size)), 1
    return (), 1


def read_input_grid(config: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The same for an input of that shape, `(B, …)`, of whatever size; empty where its shape does not tell."""
    if hasattr(config, "tubelet_size") and len(shape) == 5:
        steps, patch = _tubelet(config)
        return (shape[1] // steps, *_divide((shape[3], shape[4]), patch))
    if hasattr(config, "frequency_stride") and len(shape) == 3:
        return _divide_spectrogram(config, shape[1], shape[2])
    if hasattr(config, "patch_size") and len(shape) == 4:
        return _divide((shape[2], shape[3]), _pair(config.patch_size))
    return ()


def _tubelet(config: Any) -> tuple[int, tuple[int, int]]:
    """Frames and pixels of a patch of a video; in ViViT, its patch is a part of the tubelet."""
    tubelet = config.tubelet_size
    is_number = isinstance(tubelet, int)
    return (tubelet, _pair(config.patch_size)) if is_number else (tubelet[0], _pair(tubelet[1:]))


def _divide_spectrogram(config: Any, frames: int, mel_bins: int) -> tuple[int, int]:
    rows = (mel_bins - config.patch_size) // config.frequency_stride + 1
    return rows, (frames - config.patch_size) // config.time_stride + 1


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _divide(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    return size[0] // patch[0], size[1] // patch[1]


def read_positions(base: Any) -> int | None:
    """How many positions an encoder has, prefix tokens included; None if it does not say."""
    text_length = getattr(base.config, "max_position_embeddings", None)
    if text_length is not None and text_length <= 0:
        return None  # XLNet takes any
    if text_length is not None:
        # RoBERTa counts positions from the one after padding.
        offsets = [
            module.padding_idx + 1
            for path, module in base.named_modules()
            if path.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        ]
        return text_length - max(offsets, default=0)
    for module in base.modules():
        positions = getattr(module, "position_embeddings", getattr(module, "position_embedding", None))
        if isinstance(positions, nn.Embedding):
            return positions.num_embeddings
        if isinstance(positions, torch.Tensor):
            # DINOv2 inserts its registers after the positions have been added.
            return positions.shape[-2] + (getattr(base.config, "num_register_tokens", None) or 0)
    return None


def read_input_shape(config: Any) -> tuple[int, ...] | None:
    """The shape of one sample that an encoder takes, or None for text, whose length differs."""
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return (config.max_length, config.num_mel_bins)
    if hasattr(config, "image_size") and hasattr(config, "num_channels"):
        frames = (config.num_frames,) if hasattr(config, "num_frames") else ()
        return (*frames, config.num_channels, *_pair(config.image_size))
    return None


def count_first_tokens(encoder: Any) -> int:
    """How many tokens come before the patches of an encoder that does not say it: classes and registers."""
    return count_class_tokens(encoder) + (getattr(encoder.config, "num_register_tokens", None) or 0)


def count_class_tokens(encoder: Any) -> int:
    """How many tokens at the beginning stand for the whole input."""
    if encoder.main_input_name == "input_ids":
        # The first token of CLIP's text encoder sees only itself.
        return int(encoder.config.model_type != "clip_text_model")
    if encoder.config.model_type == "audio-spectrogram-transformer":
        return 2
    names = ("cls_token", "class_embedding")
    return int(any(getattr(module, name, None) is not None for module in encoder.modules() for name in names))


# --- checkpoints -----------------------------------------------------------------------------------------------------

# Parts of an encoder that stock checkpoints may leave out and task models train anew.
OPTIONAL_PARTS = ("pooler.", "mask_token")

# Our class or model type, and the one of transformers whose renames of stored weights it needs. (A ViT head needs
# nothing: the ViTModel inside it is transformers' own.)
CONVERSIONS = {"HfLamViTModel": "ViTModel", "hf_lam_videomae": "videomae"}


def read_structure(model: Any) -> dict[str, bool]:
    """What a stock model was made with besides its configuration, as arguments of its class."""
    structure = {}
    name = type(model).__name__
    if name in ("BertModel", "ViTModel"):
        structure["add_pooling_layer"] = model.pooler is not None
    if name == "ViTModel":
        structure["use_mask_token"] = model.embeddings.mask_token is not None
    return structure


# --- layers ----------------------------------------------------------------------------------------------------------

# What encoders call the norm after their last layer, where they have one.
LAST_NORMS = ("layernorm", "norm", "post_layernorm")
# Norms that only the pooled output goes through, by the type of the model.
UNUSED_NORMS = {"clip_vision_model": ("post_layernorm",)}

# The parts of a layer that has nothing but attention, two norms and a feed-forward layer, as our own is (`PARTS`), and
# what transformers' encoders call theirs: ViT, DeiT and AST; BERT and its family; VideoMAE; CLIP; DistilBERT. All but
# BERT and DistilBERT normalise first.
PARTS = (
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
    "attention_norm",
    "mlp_norm",
    "fc1",
    "fc2",
)
_VIT_NORMS = ("layernorm_before", "layernorm_after")
LAYER_FAMILIES: tuple[tuple[bool, tuple[str, ...]], ...] = (
    (True, (*(f"attention.{x}_proj" for x in "qkvo"), *_VIT_NORMS, "mlp.fc1", "mlp.fc2")),
    (
        False,
        (
            *(f"attention.self.{x}" for x in ("query", "key", "value")),
            "attention.output.dense",
            "attention.output.LayerNorm",
            "output.LayerNorm",
            "intermediate.dense",
            "output.dense",
        ),
    ),
    (
        True,
        (
            *(f"attention.attention.{x}" for x in ("query", "key", "value")),
            "attention.output.dense",
            *_VIT_NORMS,
            "intermediate.dense",
            "output.dense",
        ),
    ),
    (
        True,
        (
            *(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")),
            "layer_norm1",
            "layer_norm2",
            "mlp.fc1",
            "mlp.fc2",
        ),
    ),
    (
        False,
        (
            *(f"attention.{x}_lin" for x in ("q", "k", "v", "out")),
            "sa_layer_norm",
            "output_layer_norm",
            "ffn.lin1",
            "ffn.lin2",
        ),
    ),
)

# Options of a layer, and what DistilBERT and CLIP call some of them.
LAYER_OPTIONS = (
    ("hidden_size", "dim"),
    ("num_attention_heads", "n_heads"),
    ("intermediate_size", "hidden_dim"),
    ("hidden_act", "activation"),
    ("hidden_dropout_prob", "dropout"),
    ("attention_probs_dropout_prob", "attention_dropout"),
    ("layer_norm_eps", "layer_norm_eps"),
    ("initializer_range", "initializer_range"),
)


def read_window(config: Any) -> str | None:
    """The option with which attention sees a part of a long sequence, though all of a short one; None without one."""
    if getattr(config, "attention_type", None) == "original_full":
        return None  # BigBird then is a BERT
    options = ("sliding_window", "local_attention", "attention_window", "block_size")
    return next((option for option in options if getattr(config, option, None)), None)


# --- what can be built -----------------------------------------------------------------------------------------------

# The encoders that are built from their configuration alone. Others may fetch something while they are made, as those
# of timm do.
SELF_CONTAINED = frozenset(
    [
        *("albert", "bert", "camembert", "clip_text_model", "distilbert", "electra", "roberta", "xlm-roberta"),
        *("clip_vision_model", "deit", "dinov2", "vit", "videomae", "audio-spectrogram-transformer"),
    ]
)

# By the class of a model: the arguments with which it has every part that its checkpoints may hold.
COMPLETE_STRUCTURE = {"ViTModel": {"use_mask_token": True}}

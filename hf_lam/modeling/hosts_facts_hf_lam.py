# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""Facts about other people's encoders that cannot be read off their modules: one table for each kind of fact.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import inspect
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.utils.versions import require_version

from .version_hf_lam import __version__

# Here, because no file before this one imports transformers.
require_version(
    "transformers>=5.18.0",
    f"hf_lam {__version__} needs it: older releases drop VideoMAE's q/v biases or overwrite loaded weights. "
    "Run `pip install -U transformers`.",
)


class PrivateName(NamedTuple):
    """A private name of transformers that we rely on.

    where: the module, and after a colon the class, that has it or whose source uses it.
    why: reason why we need it.
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
        "transformers.utils.output_capturing",
        "_active_collector",
        "says what else than the output is wanted, and has it so far",
    ),
    PrivateName(
        "transformers.utils.output_capturing", "_CAN_RECORD_REGISTRY", "says what else a class of models can return"
    ),
    PrivateName("transformers.core_model_loading", "_weight_conversions", "how the names of weights were changed"),
    PrivateName(_MODEL, "_keys_to_ignore_on_load_unexpected", "says what of a checkpoint is no part of a model"),
    PrivateName(
        "transformers.models.auto.configuration_auto:_LazyConfigMapping",
        "_extra_content",
        "is where classes are looked for that are made when they are asked for",
    ),
    PrivateName("transformers.models.auto.auto_factory:_LazyAutoMapping", "_extra_content", "the same for models"),
    PrivateName("transformers.models.auto.auto_factory:_BaseAutoModelClass", "_model_mapping", "is where that is"),
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


# Models that are made of two others, an encoder and a decoder of whatever families, by their type: the class, and the
# Auto classes that load it. The first loads only ours; the last is what it is for.
COMPOSED = {
    "vision-encoder-decoder": (
        "VisionEncoderDecoderModel",
        ("AutoModel", "AutoModelForMultimodalLM", "AutoModelForImageTextToText"),
    ),
    "speech-encoder-decoder": ("SpeechEncoderDecoderModel", ("AutoModel", "AutoModelForSpeechSeq2Seq")),
    "encoder-decoder": ("EncoderDecoderModel", ("AutoModel", "AutoModelForSeq2SeqLM")),
}


def is_composed(config: Any) -> bool:
    """Whether this is the configuration of a model that is made of two others, transformers' own or ours."""
    return config.model_type.removeprefix("hf_lam_") in COMPOSED


# --- attention -------------------------------------------------------------------------------------------------------

# What hosts call the projections of queries, keys and values.
PROJECTION_NAMES = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("linear_q", "linear_k", "linear_v"),
)

# Hosts whose argument `bool_masked_pos` drops tokens, rather than replacing them.
_DROPPING = ("videomae", "hf_lam_videomae")


def read_softcap(config: Any) -> float | None:
    """The limit that an encoder sets to its scores; None for no limit."""
    return getattr(config, "attn_logit_softcapping", None)


def read_bias(config: Any) -> str | None:
    """The option with which an encoder adds to its scores what depends on the places of tokens; None without one."""
    for option in ("use_relative_position_bias", "use_shared_relative_position_bias", "has_relative_attention_bias"):
        if getattr(config, option, False):
            return f"{option}=True"
    positions = getattr(config, "position_embeddings_type", None)  # of Wav2Vec2-BERT
    return f"position_embeddings_type={positions!r}" if positions in ("relative", "relative_key") else None


def read_partition(config: Any) -> str | None:
    """Say, as the end of a sentence, how an encoder divides its tokens between calls of its attention; None if not.

    Swin, Hiera, SAM and their kin do; where all layers see all tokens, that is said of none of these options.
    """
    for option in ("window_size", "mask_unit_size", "local_window_size"):
        if getattr(config, option, None):
            return f"attends inside windows of the image ({option}={getattr(config, option)})"
    if getattr(config, "depths", None) is not None:
        return f"consists of stages of different width and length (depths={list(config.depths)})"
    return None


def drops_tokens(config: Any) -> bool:
    """Whether the host can be asked to drop tokens."""
    return config.model_type in _DROPPING


# --- tokens ----------------------------------------------------------------------------------------------------------


def read_grid(config: Any) -> tuple[tuple[int, ...], int]:
    """Axes of the grid of an encoder's tokens for an input of the size that it is configured for, empty for none.

    And frames of the input in a step of a video's.
    """
    if hasattr(config, "tubelet_size"):
        steps, patch = _tubelet(config)
        return (_frames(config) // steps, *_divide(_image_size(config), patch)), steps
    if hasattr(config, "frequency_stride"):
        return _divide_spectrogram(config, config.max_length, config.num_mel_bins), 1
    if takes_window(config):
        return (config.max_source_positions,), 1
    if takes_patches(config):
        side = int(config.num_patches**0.5)
        return (side, side), 1
    if hasattr(config, "image_size") and hasattr(config, "patch_size") and not hasattr(config, "num_detection_tokens"):
        return _divide(_image_size(config), _pair(config.patch_size)), 1
    return (), 1  # YOLOS has tokens after the grid, too


def read_input_grid(config: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The same for an input of that shape, `(B, …)`, of whatever size; empty where its shape does not tell."""
    if hasattr(config, "tubelet_size") and len(shape) == 5:
        steps, patch = _tubelet(config)
        # V-JEPA 2 repeats what is too short for a step.
        return (shape[1] // steps or shape[1], *_divide((shape[3], shape[4]), patch))
    if hasattr(config, "frequency_stride") and len(shape) == 3:
        return _divide_spectrogram(config, shape[1], shape[2])
    if takes_window(config) and len(shape) == 3:
        return ((shape[2] + 1) // FRAMES_PER_TOKEN,)
    if hasattr(config, "patch_size") and len(shape) == 4:
        return _divide((shape[2], shape[3]), _pair(config.patch_size))
    return ()


def read_input_shape(config: Any, grid: tuple[int, ...] = ()) -> tuple[int, ...] | None:
    """The shape of one sample that an encoder takes, or None for text and plain sound, whose length differs.

    grid: grid of the tokens; that of the size that the encoder is configured for unless given.
    """
    if hasattr(config, "frequency_stride") and grid:
        frames = config.patch_size + (grid[1] - 1) * config.time_stride
        return (frames, config.patch_size + (grid[0] - 1) * config.frequency_stride)
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return (config.max_length, config.num_mel_bins)
    if takes_window(config):
        return (config.num_mel_bins, FRAMES_PER_TOKEN * (grid or read_grid(config)[0])[0])
    channels = getattr(config, "num_channels", getattr(config, "in_chans", None))
    if channels is None:
        return None
    if takes_patches(config):
        return (prod(grid) if grid else config.num_patches, channels * prod(_pair(config.patch_size)))
    if not (hasattr(config, "image_size") or hasattr(config, "crop_size")):
        return None
    if not grid and not hasattr(config, "tubelet_size"):
        return (channels, *_image_size(config))
    steps, patch = _tubelet(config) if hasattr(config, "tubelet_size") else (1, _pair(config.patch_size))
    size = (grid[-2] * patch[0], grid[-1] * patch[1]) if grid else _image_size(config)
    frames = (grid[0] * steps if grid else _frames(config),) if hasattr(config, "tubelet_size") else ()
    return (*frames, channels, *size)


# Encoders of images that give a map of features, as convolutions do, rather than a sequence of tokens.
_GIVES_MAP = ("sam_vision_model", "sam_hq_vision_model", "vitdet")


def explain_no_tokens(config: Any) -> str | None:
    """Why an encoder of images or videos gives no sequence of tokens whose order is known; None if it does."""
    if config.model_type in _GIVES_MAP or not (hasattr(config, "patch_size") or hasattr(config, "tubelet_size")):
        return "which gives a map of features, not a sequence of tokens"
    if hasattr(config, "num_frames") and not hasattr(config, "tubelet_size"):
        return "which takes the frames of a video apart"  # TimeSformer
    return None


def takes_patches(config: Any) -> bool:
    """Whether an encoder takes the patches of images, padded to one number, with the grid of each (SigLIP 2)."""
    return not hasattr(config, "image_size") and hasattr(config, "num_patches") and hasattr(config, "patch_size")


# Mel frames in one token of Whisper's encoder.
FRAMES_PER_TOKEN = 2


def takes_window(config: Any) -> bool:
    """Whether an encoder takes sound of one length alone, padded or cut, as bands over time (Whisper)."""
    # Speech2Text says how many convolutions it has, and takes any length.
    has_both = hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins")
    return has_both and not hasattr(config, "num_conv_layers")


def _tubelet(config: Any) -> tuple[int, tuple[int, int]]:
    """Frames and pixels of a patch of a video; in ViViT, its patch is a part of the tubelet."""
    tubelet = config.tubelet_size
    is_number = isinstance(tubelet, int)
    return (tubelet, _pair(config.patch_size)) if is_number else (tubelet[0], _pair(tubelet[1:]))


def _frames(config: Any) -> int:
    return config.num_frames if hasattr(config, "num_frames") else config.frames_per_clip


def _image_size(config: Any) -> tuple[int, int]:
    return _pair(config.image_size if hasattr(config, "image_size") else config.crop_size)


def _divide_spectrogram(config: Any, frames: int, mel_bins: int) -> tuple[int, int]:
    rows = (mel_bins - config.patch_size) // config.frequency_stride + 1
    return rows, (frames - config.patch_size) // config.time_stride + 1


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _divide(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    return size[0] // patch[0], size[1] // patch[1]


def read_positions(base: Any) -> int | None:
    """The number of positions of an encoder without a grid; None if it does not say."""
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
            return positions.shape[-2]
    return None


# Samples in a second of sound for all encoders that take it plainly.
SAMPLING_RATE = 16_000


def count_sound_tokens(config: Any, samples: int) -> int | None:
    """The number of tokens that an encoder of plain sound makes of it (wav2vec 2.0, HuBERT); None for others."""
    if not takes_waveform(config):
        return None
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def count_samples(config: Any, tokens: int) -> int:
    """The fewest samples of which an encoder of plain sound makes so many tokens."""
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        tokens = (tokens - 1) * stride + kernel
    return tokens


def takes_waveform(config: Any) -> bool:
    """Whether an encoder takes plain sound of any length (wav2vec 2.0, HuBERT)."""
    has_both = hasattr(config, "conv_kernel") and hasattr(config, "conv_stride")
    return has_both and read_frame_size(config) is None


def read_frame_size(config: Any) -> int | None:
    """Numbers in one frame, for an encoder of frames of sound of any length (Wav2Vec2-BERT); None for others."""
    return getattr(config, "feature_projection_input_dim", None)


# Encoders of images that read the size off the image itself: their positions turn, or are interpolated unasked. Others
# have an option for it. (That of ViViT takes the positions of a video for those of an image.)
_ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit", "internvl_vision", "mlcd_vision_model", "pixio", "radio")
_SIZE_OPTION = "interpolate_pos_encoding"


def read_size_options(config: Any, model_class: Any) -> dict[str, bool] | None:
    """The arguments with which an encoder takes images of another size than it was made for; None if it takes none."""
    if config.model_type in _ANY_SIZE:
        return {}
    return {_SIZE_OPTION: True} if _SIZE_OPTION in inspect.signature(model_class.forward).parameters else None


# Encoders of images that cut them into patches without a rest.
_WHOLE_PATCHES = ("radio",)


def takes_whole_patches(config: Any) -> bool:
    """Whether the sides of an image must be multiples of those of a patch; elsewhere the rest is left out."""
    return config.model_type in _WHOLE_PATCHES


# Encoders of videos whose positions turn, so that they may have any number of frames.
_ANY_NUMBER_OF_FRAMES = ("vjepa2",)


def takes_any_number_of_frames(config: Any) -> bool:
    """Whether an encoder takes videos of any length."""
    return config.model_type in _ANY_NUMBER_OF_FRAMES


# What encoders take that is no text. Those of larger models may say that it is text.
INPUT_NAMES = ("pixel_values", "pixel_values_videos", "input_values", "input_features")

# What encoders call the tokens that they put before the grid.
_FIRST_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens", "cls_register_token")
# Encoders that get embeddings from a model around them, which puts one class token in front.
_WITH_CLASS_TOKEN = ("dinov2", "dinov2_with_registers", "dinov3_vit")


def count_first_tokens(model: Any) -> int:
    """The number of tokens before the grid: classes and registers.

    model: the encoder; or one around it, if that makes the embeddings.
    """
    counts = [
        1 if parameter.dim() == 1 else parameter.shape[-2]
        for module in _embeddings_in(model)
        for name, parameter in module.named_parameters(recurse=False)
        if name in _FIRST_TOKENS
    ]
    if counts or _embeddings_in(model):
        return sum(counts)
    config = model.config
    names = ("num_register_tokens", "num_registers", "num_cls_tokens")
    return sum(getattr(config, name, 0) or 0 for name in names) + (_stock_type(config) in _WITH_CLASS_TOKEN)


def count_class_tokens(encoder: Any) -> int:
    """The number of tokens at the beginning that stand for the whole input."""
    if encoder.main_input_name == "input_ids":
        # The first token of CLIP's text encoder sees only itself.
        return int(encoder.config.model_type != "clip_text_model")
    if encoder.config.model_type == "audio-spectrogram-transformer":
        return 2
    names = ("cls_token", "class_embedding")
    return int(any(getattr(module, name, None) is not None for module in _embeddings_in(encoder) for name in names))


def _embeddings_in(model: Any) -> list[nn.Module]:
    """The modules that make tokens. (AIMv2 has a class token elsewhere, with which it pools.)"""
    return [module for module in model.modules() if type(module).__name__.endswith("Embeddings")]


def _stock_type(config: Any) -> str:
    return config.model_type.removeprefix("hf_lam_")


# --- classes ---------------------------------------------------------------------------------------------------------

# The Auto classes of encoders and of heads on them, and the table of `transformers.models.auto.modeling_auto` where
# the class of each family is.
AUTO_CLASSES = {
    "AutoModel": "MODEL_MAPPING_NAMES",
    "AutoModelForPreTraining": "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "AutoModelForDocumentQuestionAnswering": "MODEL_FOR_DOCUMENT_QUESTION_ANSWERING_MAPPING_NAMES",
    "AutoModelForMultipleChoice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
    "AutoModelForNextSentencePrediction": "MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForMaskedImageModeling": "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES",
    "AutoModelForSemanticSegmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "AutoModelForUniversalSegmentation": "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES",
    "AutoModelForObjectDetection": "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "AutoModelForDepthEstimation": "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
    "AutoModelForVideoClassification": "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForAudioClassification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForAudioFrameClassification": "MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForAudioXVector": "MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES",
    "AutoModelForCTC": "MODEL_FOR_CTC_MAPPING_NAMES",
}
# The tables of families that have a decoder, and those of their heads that stand on the encoder alone.
DECODER_TABLES = ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES")
HEADS_WITHOUT_DECODER = ("AutoModelForAudioClassification", "AutoModelForCTC")
# What the names of an encoder's weights begin with in the checkpoints of such a family, where the encoder was saved
# alone, and of what is no part of it.
ENCODER_PREFIXES = (r"^model\.encoder\.", r"^encoder\.")
ENCODER_ALONE = r"^(?=(conv1|conv2|embed_positions|layers|layer_norm|hf_lam)\.)"
DECODER_WEIGHTS = (r"^(model\.)?decoder\.", r"^(proj_out|lm_head)\.")
# Encoders that are in no table, though they have a configuration of their own.
UNLISTED_ENCODERS = {
    "aimv2_text_model": "Aimv2TextModel",
    "siglip2_text_model": "Siglip2TextModel",
    "siglip_text_model": "SiglipTextModel",
}
# Heads whose loss is a mean over labelled tokens.
TOKEN_HEADS = ("AutoModelForMaskedLM", "AutoModelForTokenClassification")


# --- checkpoints -----------------------------------------------------------------------------------------------------

# Parts of an encoder that stock checkpoints may leave out and task models train anew.
OPTIONAL_PARTS = ("pooler.", "mask_token", "masked_spec_embed")


# --- layers ----------------------------------------------------------------------------------------------------------

# What encoders call the norm after their last layer, where they have one; and some of them by their type.
_LAST_NORMS = ("layernorm", "norm", "post_layernorm")
_LAST_NORMS_OF = dict.fromkeys(("siglip_text_model", "siglip2_text_model"), ("final_layer_norm",))


def name_last_norm(encoder: Any) -> str | None:
    """The name of the norm after an encoder's last layer, which may be None there; None if it is not known."""
    names = _LAST_NORMS_OF.get(encoder.config.model_type, _LAST_NORMS)
    return next((name for name in names if hasattr(encoder, name)), None)


# Modules that only the pooled output goes through, by the type of the model, and options that leave such modules out.
ONLY_FOR_POOLING = {
    "clip_vision_model": ("post_layernorm",),
    "metaclip_2_vision_model": ("post_layernorm",),
    "chinese_clip_vision_model": ("post_layernorm",),
    "mlcd_vision_model": ("post_layernorm",),
    "siglip_text_model": ("head",),
    "siglip2_text_model": ("head",),
}
POOLING_OPTIONS = ("vision_use_head", "use_head")
# Modules beside an encoder's layers that are for other ends than its tokens.
UNUSED_MODULES = ("pooler", "predictor", "contact_head")
# What stands for tokens that are hidden in pretraining.
MASK_TOKENS = ("mask_token", "masked_spec_embed")

# Encoders of sound with parts that take no mask, by their option or their type, and why that matters.
SEES_PADDING = {
    "add_adapter": "the convolutions behind its layers see padding",
    "squeeze_factor": "it averages neighbouring tokens, also those of padding",
    "wav2vec2-conformer": "the convolutions in its layers see padding",
}

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


def keep_layers(config: Any, numbers: list[int], before: int) -> None:
    """Adjust what a configuration says of single layers to the layers that an encoder has now.

    numbers: former numbers of the layers that are left.
    before: number of layers there were.
    """
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and len(kinds) == before:
        config.layer_types = [kinds[number] for number in numbers]
    stages = getattr(config, "stage_names", None)
    if stages is not None and len(stages) == before + 1 != len(numbers) + 1:
        # Only a backbone, which has no mechanisms, gives out more than the last.
        config.stage_names = ["stem", *(f"stage{index + 1}" for index in range(len(numbers)))]
        config.out_indices = [len(numbers)]


def read_layerdrop(config: Any) -> tuple[str, float] | None:
    """The option with which an encoder leaves out layers at random while it is trained; None if it runs all."""
    options = ((name, getattr(config, name, None)) for name in ("layerdrop", "encoder_layerdrop"))
    return next(((name, value) for name, value in options if value), None)


def read_window(config: Any) -> str | None:
    """The option with which attention sees a part of a long sequence, though all of a short one; None without one."""
    if getattr(config, "attention_type", None) == "original_full":
        return None  # BigBird then is a BERT
    options = ("sliding_window", "local_attention", "attention_window", "block_size")
    return next((option for option in options if getattr(config, option, None)), None)


# --- what can be built -----------------------------------------------------------------------------------------------

# By the class of a model: the arguments with which it has every part that its checkpoints may hold.
COMPLETE_STRUCTURE = {"ViTModel": {"use_mask_token": True}}

"""The keys that the JSON files which loading reads may have: tables, for every file, of those that name no code.

A table is written down in Python values: a type is a value of it, a tuple one of several, a frozenset one of these
values, a pattern a text that matches whole, a list of one a list of such, and a dictionary an object with no other
keys than its own, of which patterns and those with a star are for several. `key_checks` compares files with them. What
is in no table is a finding, so that what a coming release of a library reads is not passed unseen.
"""

from __future__ import annotations

import re
from typing import Any

NONE = type(None)
NUMBER = (int, float)  # no truth value, which Python takes for an int
FLAG = (bool, NONE)
COUNT = (int, NONE)
TEXT = (str, NONE)
TEXTS = (str, NONE, [str])
NUMBERS = (int, float, bool, NONE, [(int, float, bool, NONE)])
_POSITIONS = (NONE, frozenset({"sinusoidal", "learned"}))  # of vectors
# Numbers, in whatever arrangement, cannot name anything.
NUMBERS_IN_LISTS = (NUMBERS, [NUMBERS], [[NUMBERS]])


def _each(wanted: Any, names: str) -> dict[str, Any]:
    """The same for several names, which stand one after the other."""
    return dict.fromkeys(names.split(), wanted)


# --- transformers ----------------------------------------------------------------------------------------------------

_ADDED_TOKEN = {"content": str, "__type": str, "id": int, "rstrip": FLAG, "lstrip": FLAG, "normalized": FLAG}
_ADDED_TOKEN |= {"single_word": FLAG, "special": FLAG}
TOKEN = (str, NONE, _ADDED_TOKEN)
TOKENS = (*TOKEN, [TOKEN], {"*": TOKEN})
TEMPLATES = (str, NONE, [{"name": str, "template": str}], {"*": str})

TOKENIZER = {
    # Classes are compared with those that were looked through; so are the names of files with what is there.
    **_each(TEXT, "tokenizer_class processor_class slow_tokenizer_class"),
    **_each(TEXTS, "vocab_file merges_file tokenizer_file full_tokenizer_file source_spm target_spm"),
    **_each((str, NONE, list, {"*": NUMBER}), "vocab merges init_inputs"),
    "auto_map": (list, dict, NONE),
    # Where it once came from.
    **_each(TEXT, "name_or_path _name_or_path special_tokens_map_file tokenizer_type dtype torch_dtype"),
    "special_tokens_map": {"*": TOKENS},
    "transformers_version": str,
    "backend": frozenset({"tokenizers", "sentencepiece", "custom"}),
    "chat_template": TEMPLATES,
    "added_tokens_decoder": {"*": TOKEN},
    **_each(NONE, "use_auth_token hub_token"),  # of the Hub
    "*_token": TOKEN,
    "*_tokens": TOKENS,
    "do_*": FLAG,
    "add_*": FLAG,
    "is_*": FLAG,
    **_each(FLAG, "local_files_only use_fast from_slow legacy keep_accents remove_space"),
    **_each(FLAG, "lowercase strip_accents tokenize_chinese_chars trim_offsets normalize"),
    **_each(FLAG, "clean_up_tokenization_spaces split_by_punct split_special_tokens"),
    **_each(FLAG, "spaces_between_special_tokens use_default_system_prompt sp_bpe"),
    **_each(FLAG, "fuse_unk byte_fallback ignore_merges clean_text handle_chinese_chars"),
    **_each(FLAG, "only_label_first_subword sanitize_special_tokens fix_mistral_regex"),
    **_each(FLAG, "return_token_type_ids return_attention_mask"),
    **_each(NUMBERS, "model_max_length max_length max_len max_seq_length vocab_size stride"),
    **_each(NUMBERS, "extra_ids offset pad_to_multiple_of dropout unk_id pad_token_label"),
    **_each(NUMBERS, "cls_token_box sep_token_box pad_token_box"),
    "*_token_id": NUMBERS,
    "*_token_type_id": NUMBERS,
    "padding": (bool, str, NONE),
    "truncation": (bool, str, NONE),
    "never_split": TEXTS,
    "model_input_names": [str],
    "errors": str,
    **_each(TEXT, "padding_side truncation_side truncation_strategy padding_strategy"),
    **_each(TEXT, "wordpieces_prefix continuing_subword_prefix end_of_word_suffix"),
    **_each(TEXT, "_spm_precompiled_charsmap response_template replace_word_delimiter_char target_lang"),
    "sp_model_kwargs": (NONE, {"enable_sampling": bool, "nbest_size": NUMBER, "alpha": NUMBER}),
}

_SIZE = (NUMBERS, {"*": NUMBERS})
# An image processor, a feature extractor or a video processor, in a file of its own or inside of a processor.
PREPROCESSOR = {
    **_each(TEXT, "processor_class image_processor_type feature_extractor_type"),
    **_each(TEXT, "video_processor_type _processor_class transformers_version"),
    "auto_map": (dict, NONE),
    "do_*": FLAG,
    "*_size": _SIZE,
    "size": _SIZE,
    **_each(NUMBERS, "image_mean image_std resample rescale_factor rescale_offset crop_pct offset fps"),
    **_each(NUMBERS, "size_divisor size_divisibility num_channels num_frames image_seq_length"),
    **_each(NUMBERS, "min_pixels max_pixels min_frames max_frames num_patches max_num_patches"),
    **_each(NUMBERS, "sampling_rate num_mel_bins hop_length win_length chunk_length"),
    **_each(NUMBERS, "n_fft n_samples nb_max_frames max_length mean std dither"),
    **_each(NUMBERS, "padding_value stride preemphasis mel_floor frequency_min"),
    **_each(NUMBERS, "frequency_max pad_to_multiple_of"),
    **_each(TEXTS, "padding_side return_tensors model_input_names _valid_processor_keys"),
    **_each((str, bool, NONE), "device data_format input_data_format padding truncation"),
    **_each(FLAG, "return_attention_mask return_metadata default_to_square"),
    **_each(FLAG, "disable_grouping reduce_labels"),
    "mel_filters": NUMBERS_IN_LISTS,
}
# Keys that are handed to a call of a tokenizer or a preprocessor.
_CALL = {
    "add_*": FLAG,
    "return_*": (str, bool, NONE),
    **_each((str, bool, NONE), "padding truncation padding_side truncation_side"),
    **_each(FLAG, "is_split_into_words continue_final_message load_audio_from_video"),
    **_each(FLAG, "enable_thinking restore_suffix verbose"),
    **_each(NUMBERS, "logits_to_keep video_fps"),
    "chat_template": TEXT,
} | {key: wanted for key, wanted in PREPROCESSOR.items() if key != "auto_map"}
# Of a modality of a fusion model that is given as vectors.
_VECTORS = {**_each(COUNT, "size max_length"), "positions": _POSITIONS, **_each(NUMBERS, "mean std")}
PROCESSOR = {
    **_each(TEXT, "processor_class transformers_version vision_feature_select_strategy"),
    "auto_map": (dict, NONE),
    "chat_template": TEMPLATES,
    "tokenizer": (NONE, TOKENIZER),
    **_each((NONE, PREPROCESSOR), "image_processor video_processor feature_extractor"),
    "*_token": TOKEN,
    "*_tokens": NUMBERS,
    "patch_size": NUMBERS,
    "features": (NONE, {"*": _VECTORS}),
    "decoder_tokenizer": FLAG,
    "*_kwargs": _CALL,
}

GENERATION = {
    "*": NUMBERS_IN_LISTS,
    "_from_model_config": FLAG,
    **_each(TEXT, "transformers_version cache_implementation num_assistant_tokens_schedule"),
    "stop_strings": TEXTS,
    "early_stopping": (bool, NONE, "never"),
    "watermarking_config": (NONE, {"*": NUMBERS, "seeding_scheme": frozenset({"lefthash", "selfhash"})}),
}

# Activations that sentence-transformers makes from their names, whatever stands there: it imports and calls it.
_ACTIVATIONS = (
    "Identity ReLU ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU GELU SiLU Mish Tanh Hardtanh Tanhshrink Sigmoid "
    "Hardsigmoid LogSigmoid Hardswish Softplus Softsign Softshrink Hardshrink Softmax LogSoftmax"
)
_ACTIVATION = re.compile(rf"torch\.nn\.(modules\.(activation|linear)\.)?({'|'.join(_ACTIVATIONS.split())})")

# The same for the model.
_FEATURES = {**_each(COUNT, "size max_length class_tokens"), "positions": _POSITIONS, "dropout": NUMBER}
_FEATURES |= _each(bool, "norm project")

# Of any model, besides what the class of its configuration knows: of other releases of transformers, and of
# sentence-transformers. Under any other name there may be numbers and truth values, since people note their own.
CONFIG = {
    **_each(TEXT, "model_type _name_or_path name_or_path transformers_version torch_dtype"),
    **_each(TEXT, "tokenizer_class processor_class problem_type finetuning_task prefix"),
    **_each(TEXT, "position_embedding_type summary_type summary_activation pooler_type"),
    **_each(TEXT, "directionality language name hidden_act pooler_act embedding_type"),
    **_each(TEXT, "feat_extract_norm feat_extract_activation"),
    **_each((NONE, {"*": (NUMBERS, str, {"*": (NUMBERS, str)})}), "task_specific_params pruned_heads rope_parameters"),
    **_each(TEXTS, "architectures out_features stage_names"),
    **_each((NONE, {"*": (str, NUMBER)}), "id2label label2id"),
    "auto_map": (dict, NONE),
    "hf_lam": (dict, NONE),
    # Of fusion models.
    "features": (NONE, {"*": _FEATURES}),
    "label_modalities": (NONE, [str]),
    "contrast": (NONE, [[str]]),
    "sentence_transformers": {"version": str, "activation_fn": (_ACTIVATION, NONE)},
    "sbert_ce_default_activation_function": (_ACTIVATION, NONE),
}

# --- sentence-transformers -------------------------------------------------------------------------------------------

# The modules that were looked through, by their classes, and what is in their `config.json`.
MODULES: dict[str, dict[Any, Any]] = {
    "Transformer": {},
    "MLMTransformer": {},
    "Router": {},
    "Asym": {},
    "StaticEmbedding": {},
    "SparseStaticEmbedding": {"frozen": bool},
    "Normalize": {},
    "Pooling": {
        **_each(int, "embedding_dimension word_embedding_dimension"),
        "pooling_mode": TEXTS,
        "pooling_mode_*": bool,
        "include_prompt": bool,
    },
    "Dense": {
        **_each(int, "in_features out_features"),
        **_each(bool, "bias use_residual"),
        "activation_function": _ACTIVATION,
    },
    "Dropout": {"dropout": NUMBER},
    "LayerNorm": {"dimension": int},
    "WeightedLayerPooling": {
        **_each(int, "embedding_dimension word_embedding_dimension layer_start num_hidden_layers")
    },
    "CNN": {},
    "LSTM": {},
    "BoW": {
        "vocab": [str],
        "word_weights": {"*": NUMBER},
        "unknown_word_weight": NUMBER,
        "cumulative_term_frequency": bool,
    },
    "WordWeights": {"vocab": [str], "word_weights": {"*": NUMBER}, "unknown_word_weight": NUMBER},
    "SpladePooling": {
        "pooling_strategy": frozenset({"max", "sum"}),
        "activation_function": frozenset({"relu", "log1p_relu"}),
        **_each(COUNT, "embedding_dimension word_embedding_dimension chunk_size"),
    },
    "SparseAutoEncoder": {
        **_each(int, "input_dim hidden_dim k k_aux dead_threshold"),
        "normalize": bool,
    },
    "LogitScore": {"true_token_id": int, "false_token_id": COUNT},
    "MultiVectorMask": {"skiplist_words": ([str], NONE), "skiplist_tasks": TEXTS, "keep_only_token_ids": NUMBERS},
    "HierarchicalTokenPooling": {
        **_each(int, "pool_factor num_protected_tokens"),
        "normalize_embeddings": bool,
        "tasks": TEXTS,
    },
}
# What any of them may have: the names of what it takes and gives.
_NAMES = {"module_input_name": TEXT, "module_output_name": TEXT}
MODULES = {name: wanted | _NAMES for name, wanted in MODULES.items()}
# Those whose folder is that of a model of transformers, or of further modules.
MODELS = frozenset({"Transformer", "MLMTransformer"})
ROUTERS = frozenset({"Router", "Asym"})
# Where they are or were in sentence-transformers; a class may be named with the file that it is in, or without.
MODULE = re.compile(
    r"sentence_transformers\.(models|(base|sentence_transformer|sparse_encoder|cross_encoder|multi_vector_encoder)"
    rf"\.(models|modules))\.([a-zA-Z_]+\.)?({'|'.join(MODULES)})"
)

_MODEL_OPTIONS = {
    "attn_implementation": TEXT,
    **_each(re.compile("auto|(torch[.])?(float32|float16|bfloat16|float64)"), "torch_dtype dtype"),
    **_each(bool, "add_pooling_layer low_cpu_mem_usage"),
}
_CONFIG_OPTIONS = {
    **_each(NUMBERS, "num_labels use_cache hidden_dropout_prob attention_probs_dropout_prob"),
    **_each(NUMBERS, "classifier_dropout max_position_embeddings"),
}
_TOKENIZER_OPTIONS = {
    **_each(NUMBERS, "model_max_length max_length stride pad_to_multiple_of"),
    **_each(TEXT, "padding_side truncation_side"),
    **_each(FLAG, "use_fast do_lower_case strip_accents add_prefix_space"),
    **_each(FLAG, "clean_up_tokenization_spaces legacy"),
    **_each(TEXT, "bos_token eos_token unk_token sep_token pad_token cls_token mask_token"),
    "chat_template": TEMPLATES,
    **_each(_SIZE, "min_pixels max_pixels size image_size"),
}
_METHODS = frozenset(
    {"forward", "get_embeddings", *(f"get_{kind}_features" for kind in ("text", "image", "audio", "video"))}
)
_MODALITY = {"method": _METHODS, "method_output_name": TEXTS, "format": TEXT}
_QUERY_EXPANSION = (
    NONE,
    {"strategy": str, "attend": bool, "length": COUNT, "token": TEXT, "multiple_of": COUNT, "max_length": COUNT},
)
TRANSFORMER_MODULE = {
    **_each(COUNT, "max_seq_length query_length document_length"),
    **_each(FLAG, "do_lower_case unpad_inputs"),
    # Another place for the tokenizer.
    "tokenizer_name_or_path": NONE,
    "transformer_task": frozenset(
        {"feature-extraction", "sequence-classification", "fill-mask", "text-generation", "any-to-any", "retrieval"}
    ),
    "modality_config": {"*": _MODALITY},
    "module_output_name": TEXT,
    "query_expansion": _QUERY_EXPANSION,
    "processing_kwargs": {
        key: _CALL | {"processor_kwargs": {"*": _CALL}}
        for key in ("common", "text", "audio", "image", "video", "chat_template")
    },
    **_each(_MODEL_OPTIONS, "model_args model_kwargs"),
    **_each(_CONFIG_OPTIONS, "config_args config_kwargs"),
    **_each(_TOKENIZER_OPTIONS, "tokenizer_args tokenizer_kwargs processor_kwargs"),
}
SENTENCE_TRANSFORMERS = {
    "__version__": (str, {"*": TEXT}),
    "model_type": TEXT,
    "requirements": (NONE, {"*": (str, {"specifier": str, "reason": str})}),
    "prompts": (NONE, {"*": TEXT}),
    **_each(TEXT, "default_prompt_name similarity_fn_name query_prefix document_prefix"),
    **_each(COUNT, "truncate_dim max_active_dims query_length document_length"),
    **_each(FLAG, "do_query_expansion attend_to_expansion_tokens attend_to_mask_tokens"),
    "query_expansion": _QUERY_EXPANSION,
    "skiplist_words": TEXTS,
    "activation_fn": (_ACTIVATION, NONE),
    "keep_in_fp32_modules": (bool, TEXTS),
}
# A folder in the repository.
_FOLDER = re.compile(r"(?![/~])(?!.*(\.\.|://))[^\\:\0]*")
_LAYERS = {
    **_each(int, "in_embedding_dimension in_word_embedding_dimension out_channels"),
    **_each(int, "embedding_dimension word_embedding_dimension hidden_dim num_layers"),
    **_each(([int], NONE), "kernel_sizes stride_sizes"),
    "dropout": NUMBER,
    "bidirectional": bool,
}

# --- By the names of files; with a star, of several. All names are in small letters ---------------------------------

FILES: dict[str, Any] = {
    "tokenizer_config.json": TOKENIZER,
    "special_tokens_map.json": {"*": TOKENS},
    "added_tokens.json": {"*": int},
    "chat_template.json": {"chat_template": TEMPLATES},
    "preprocessor_config.json": PREPROCESSOR,
    "video_preprocessor_config.json": PREPROCESSOR,
    "processor_config.json": PROCESSOR,
    "generation_config.json": GENERATION,
    "config_sentence_transformers.json": SENTENCE_TRANSFORMERS,
    "modules.json": [{"idx": int, "name": str, "path": _FOLDER, "type": MODULE, "kwargs": [str]}],
    "router_config.json": {
        "types": {_FOLDER: MODULE},
        "structure": {"*": [str]},
        "parameters": {"default_route": TEXT, "allow_empty_key": bool, "route_mappings": (NONE, {"*": TEXT})},
    },
    "cnn_config.json": _LAYERS,
    "lstm_config.json": _LAYERS,
    "sentence_*_config.json": TRANSFORMER_MODULE,
}
# Files that no repository of hf_lam needs, and what would read them.
NEVER = {
    "model_index.json": "is diffusers', which would import the classes that it names",
    "modular_model_index.json": "is diffusers', which would import the classes that it names",
    "modular_config.json": "is diffusers', which would import the classes that it names",
    "*scheduler_config.json": "is diffusers', which would import the class that it names",
    "wordembedding_config.json": "makes sentence-transformers import the class of a tokenizer",
}

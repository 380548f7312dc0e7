# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The version of the code that travels, its files and its mechanisms. It imports nothing: asking it costs nothing.

These files are copied into every saved model folder, next to each other, and must not need the `hf_lam` package. Only
`torch`, `transformers`, the standard library and siblings may be imported in them.
"""

__version__ = "0.1.0"

# The mechanisms that these files register, in this order.
OWN_MECHANISMS = ("lam", "locomt", "stt")

# The file whose copy in a model's folder also imports the mechanisms from elsewhere that the model has.
LIST_FILE = "mechanism_list_hf_lam.py"

# What a saved model needs to load without the hf_lam package, in the order in which the files import each other.
TRAVELLING_FILES = (
    "version_hf_lam.py",
    "license_hf_lam.py",
    "numerics_hf_lam.py",
    "padding_hf_lam.py",
    "threads_hf_lam.py",
    "stand_ins_hf_lam.py",
    "hosts_facts_hf_lam.py",
    "families_hf_lam.py",
    "host_attention_hf_lam.py",
    "hosts_hf_lam.py",
    "option_checks_hf_lam.py",
    "mechanism_hf_lam.py",
    "mechanism_checks_hf_lam.py",
    "mechanism_registry_hf_lam.py",
    "lam_formula_hf_lam.py",
    "lam_parts_hf_lam.py",
    "lam_chunked_hf_lam.py",
    "lam_attention_hf_lam.py",
    "lam_hf_lam.py",
    "locomt_views_hf_lam.py",
    "locomt_segments_hf_lam.py",
    "locomt_layout_hf_lam.py",
    "locomt_blocks_hf_lam.py",
    "locomt_attention_hf_lam.py",
    "locomt_hf_lam.py",
    "stt_attention_hf_lam.py",
    "stt_config_hf_lam.py",
    "stt_synthesizers_hf_lam.py",
    "stt_hf_lam.py",
    "attention_pass_hf_lam.py",
    "mechanism_list_hf_lam.py",
    "input_grids_hf_lam.py",
    "attention_hooks_hf_lam.py",
    "changes_hf_lam.py",
    "layers_hf_lam.py",
    "injection_hf_lam.py",
    "cross_lam_hf_lam.py",
    "saving_hf_lam.py",
    "stock_saving_hf_lam.py",
    "weight_names_hf_lam.py",
    "travelling_hf_lam.py",
    "configuration_hf_lam.py",
    "modeling_hf_lam.py",
    "fusion_features_hf_lam.py",
    "moment_options_hf_lam.py",
    "decoder_options_hf_lam.py",
    "configuration_hf_lam_fusion.py",
    "fusion_layers_hf_lam.py",
    "fusion_sound_hf_lam.py",
    "fusion_encoders_hf_lam.py",
    "fusion_sources_hf_lam.py",
    "fusion_checkpoints_hf_lam.py",
    "fusion_inputs_hf_lam.py",
    "fusion_model_hf_lam.py",
    "fusion_heads_hf_lam.py",
    "moment_losses_hf_lam.py",
    "fusion_moments_hf_lam.py",
    "fusion_decoders_hf_lam.py",
    "fusion_generation_hf_lam.py",
    "modeling_hf_lam_fusion.py",
    "samples_hf_lam.py",
    "sample_padding_hf_lam.py",
    "vectors_hf_lam.py",
    "media_inputs_hf_lam.py",
    "targets_hf_lam.py",
    "processing_hf_lam.py",
)

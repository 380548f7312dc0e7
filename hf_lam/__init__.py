"""hf_lam: attention mechanisms from research, in the transformers models people already use."""

from __future__ import annotations

from transformers import AutoConfig, AutoProcessor
from transformers.models.auto import modeling_auto

from .attention2d import SttAttention2d
from .calibration import calibrate_views
from .conversion import convert
from .fitting import fit_synthesizers
from .flops import cost
from .hardening import harden
from .hub import push, verify
from .mechanism_files import load_mechanism, save_mechanism
from .modeling.configuration_hf_lam import (
    HfLamBertConfig,
    HfLamVideoMAEConfig,
    HfLamViTConfig,
    LamConfig,
    LocomtConfig,
    SttConfig,
    __version__,
)
from .modeling.configuration_hf_lam_fusion import HfLamFusionConfig
from .modeling.functional_hf_lam import lam_attention
from .modeling.injection_hf_lam import inject, remove, set_views
from .modeling.locomt_hf_lam import locomt_attention
from .modeling.mechanisms_hf_lam import LearnableAttentionMask
from .modeling.modeling_hf_lam import (
    HfLamBertForMaskedLM,
    HfLamBertForMultipleChoice,
    HfLamBertForQuestionAnswering,
    HfLamBertForSequenceClassification,
    HfLamBertForTokenClassification,
    HfLamBertModel,
    HfLamVideoMAEForVideoClassification,
    HfLamVideoMAEModel,
    HfLamViTForImageClassification,
    HfLamViTForMaskedImageModeling,
    HfLamViTModel,
)
from .modeling.modeling_hf_lam_fusion import HfLamFusionForSequenceClassification, HfLamFusionModel
from .modeling.processing_hf_lam import HfLamFusionProcessor
from .modeling.stt_hf_lam import stt_attention
from .parameters import freeze_host, mechanism_parameters

__all__ = [
    "HfLamBertConfig",
    "HfLamBertForMaskedLM",
    "HfLamBertForMultipleChoice",
    "HfLamBertForQuestionAnswering",
    "HfLamBertForSequenceClassification",
    "HfLamBertForTokenClassification",
    "HfLamBertModel",
    "HfLamFusionConfig",
    "HfLamFusionForSequenceClassification",
    "HfLamFusionModel",
    "HfLamFusionProcessor",
    "HfLamViTConfig",
    "HfLamViTForImageClassification",
    "HfLamViTForMaskedImageModeling",
    "HfLamViTModel",
    "HfLamVideoMAEConfig",
    "HfLamVideoMAEForVideoClassification",
    "HfLamVideoMAEModel",
    "LamConfig",
    "LearnableAttentionMask",
    "LocomtConfig",
    "SttAttention2d",
    "SttConfig",
    "__version__",
    "calibrate_views",
    "convert",
    "cost",
    "fit_synthesizers",
    "freeze_host",
    "harden",
    "inject",
    "lam_attention",
    "load_mechanism",
    "locomt_attention",
    "mechanism_parameters",
    "push",
    "remove",
    "save_mechanism",
    "set_views",
    "stt_attention",
    "verify",
]

for _config_class in (HfLamBertConfig, HfLamViTConfig, HfLamVideoMAEConfig, HfLamFusionConfig):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    for _auto_name, _model_name in _config_class.auto_classes.items():
        getattr(modeling_auto, _auto_name).register(_config_class, globals()[_model_name], exist_ok=True)
AutoProcessor.register(HfLamFusionConfig, HfLamFusionProcessor, exist_ok=True)
